"""The Triton kernels on a GPU against the Numba kernels, at the size of an image and of a trained scene.

Both compute in float32. Where a sample lies within rounding of the border of a Gaussian's support the two may disagree
on whether it is in: worth up to eps dt of optical depth. Such rays are few; the others agree closely.
"""

import importlib
from pathlib import Path

import pytest
import torch

from raygauss_ns.casting import Rays, cast
from raygauss_ns.casting.types import Gaussians

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIDE = 800
EDGE = 20  # optical depths eps dt by which a ray may differ


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("common.gpu_scene")


def differentiate(gaussians, colors, rays, settings, device, backend, cotangent):
    leaves = [tensor.detach().to(device).requires_grad_() for tensor in (*gaussians, colors)]
    moved = Rays(*(tensor.to(device) for tensor in rays[:4]), rays.image_width)
    outputs = cast(Gaussians(*leaves[:4]), leaves[4], moved, settings, backend=backend)
    stacked = torch.cat([outputs.rgb, outputs.transmittance[:, None], outputs.depth[:, None]], dim=1)
    gradients = torch.autograd.grad(stacked, leaves, cotangent.to(device))
    return stacked.detach().cpu(), [gradient.cpu() for gradient in gradients]


def compare(benchmark, count, rays, settings):
    gaussians, colors = benchmark.shell_scene(count, "cpu")
    cotangent = torch.randn(len(rays.origins), 5, generator=torch.Generator().manual_seed(1))
    cotangent[:, 4] *= 0.1
    expected, expected_gradients = differentiate(gaussians, colors, rays, settings, "cpu", "cpu", cotangent)
    actual, gradients = differentiate(gaussians, colors, rays, settings, "cuda", "gpu", cotangent)
    assert expected[:, 3].mean() < 0.7, "too little was seen"
    error = (actual - expected).abs()
    error[:, 4] /= benchmark.CAMERA_DISTANCE
    error = error.amax(-1)
    assert float(error.median()) < 1e-5
    assert float((error < 1e-4).double().mean()) > 0.99
    border = EDGE * settings.density_threshold * settings.step
    assert float((error < border).double().mean()) > 0.9999
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient.isfinite().all()
        assert float((gradient - wanted).norm() / wanted.norm()) < 2e-3
        assert float((gradient * wanted).sum() / (gradient.norm() * wanted.norm())) > 0.9999


@pytest.mark.parametrize("count", [20_000, 100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_image(count, benchmark):
    compare(benchmark, count, benchmark.image_rays(SIDE, "cpu"), benchmark.SETTINGS)


@pytest.mark.parametrize("capacity", [32, 4])
def test_lists_that_are_too_short(capacity, benchmark, monkeypatch):
    """Most packets open windows in depth; with 4 entries a list, slabs come in batches."""
    from raygauss_ns.casting.gpu import launch

    monkeypatch.setattr(launch, "CAPACITY", capacity)
    compare(benchmark, 100_000, benchmark.image_rays(201, "cpu"), benchmark.SETTINGS)


@pytest.mark.parametrize("slab", [4, 8, 32])
def test_slab_size(slab, benchmark):
    settings = benchmark.SETTINGS._replace(samples_per_slab=slab)
    compare(benchmark, 20_000, benchmark.image_rays(201, "cpu"), settings)


def test_incoherent_rays(benchmark):
    compare(benchmark, 20_000, benchmark.random_rays(5_001, "cpu"), benchmark.SETTINGS)


@pytest.mark.parametrize("growth", [{}, {"step_growth": 0.01, "transmittance_exponent": 1 / 3, "max_step": 0.08}])
def test_small_eps_and_no_early_stop_agree_with_the_reference(growth, benchmark):
    """Nothing jumps then: the strict tolerances of the interpreter's tests hold."""
    settings = benchmark.SETTINGS._replace(step=0.02, density_threshold=1e-6, transmittance_threshold=0.0, **growth)
    rays = benchmark.image_rays(24, "cpu")
    gaussians, colors = benchmark.shell_scene(200, "cpu")
    cotangent = torch.randn(len(rays.origins), 5, generator=torch.Generator().manual_seed(1))
    double = Rays(*(tensor.double() for tensor in rays[:4]), rays.image_width)
    scene = Gaussians(*(tensor.double() for tensor in gaussians))
    expected, expected_gradients = differentiate(
        scene, colors.double(), double, settings, "cuda", "reference", cotangent.double()
    )
    actual, gradients = differentiate(gaussians, colors, rays, settings, "cuda", "gpu", cotangent)
    assert float((actual - expected).abs().max()) < (2e-5 if growth else 1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert float((gradient - wanted).norm() / wanted.norm()) < (2e-4 if growth else 1e-4)


def test_a_step_does_not_wait_for_the_device(benchmark):
    gaussians, colors = benchmark.shell_scene(2_000, "cuda")
    leaves = [tensor.requires_grad_() for tensor in (*gaussians, colors)]
    for rays in (benchmark.image_rays(64, "cuda"), benchmark.random_rays(500, "cuda")):
        for attempt in ("compile", "measure"):
            if attempt == "measure":
                torch.cuda.set_sync_debug_mode("error")
            try:
                outputs = cast(Gaussians(*leaves[:4]), leaves[4], rays, benchmark.SETTINGS)
                torch.autograd.grad(outputs.rgb.sum(), leaves)
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_memory_of_a_large_scene(benchmark):
    """1M Gaussians at 800 x 800, forward and backward: RayGaussX asks for 24 GB."""
    gaussians, colors = benchmark.shell_scene(1_000_000, "cuda")
    leaves = [tensor.requires_grad_() for tensor in (*gaussians, colors)]
    torch.cuda.reset_peak_memory_stats()
    rays = benchmark.image_rays(SIDE, "cuda")
    outputs = cast(Gaussians(*leaves[:4]), leaves[4], rays, benchmark.SETTINGS)
    torch.autograd.grad(outputs.rgb.sum(), leaves)
    assert torch.cuda.max_memory_allocated() < 4e9
