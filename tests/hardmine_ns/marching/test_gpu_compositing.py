"""The compositing kernels: in Triton's interpreter as the PyTorch twin in float64, and built for absent GPUs."""

import pytest
import torch

from hardmine_ns.marching.reference import _OPAQUE, _exclusive_sums, composite_backward_torch, composite_torch
from hardmine_ns.marching.samples import pack

pytest.importorskip("triton")


@pytest.fixture
def samples():
    """Of rays with none, one, a block of and more samples."""
    torch.manual_seed(0)
    rays = torch.repeat_interleave(torch.arange(7), torch.tensor([0, 1, 32, 33, 40, 5, 0]))
    starts = torch.arange(len(rays)) * 0.1
    return pack(starts, starts + 0.1, rays, 7)


def relative(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.interpreted
@pytest.mark.parametrize("scale", [1e-4, 0.3, 30.0])
@pytest.mark.parametrize("weights_count", [True, False])
def test_agrees_with_pytorch(scale, weights_count, samples):
    from hardmine_ns.marching.gpu import compositing as gpu

    thickness, colors = scale * torch.rand(len(samples)), torch.rand(len(samples), 3)
    double = [tensor.double() for tensor in (thickness, colors, samples.midpoints)]
    found = gpu.composite(thickness, colors, samples.midpoints, samples.offsets)
    wanted = composite_torch(*double, samples)
    for a, b in zip(found, wanted, strict=True):
        assert relative(a, b) < 2e-6
    of_sums, of_weights = torch.randn(7, 5), torch.randn(len(samples))
    given = of_weights if weights_count else None
    gradients = gpu.composite_backward(colors, samples.midpoints, samples.offsets, *found[:2], of_sums, given)
    exact = composite_backward_torch(
        *double[1:], samples, *wanted[:2], of_sums.double(), weights_count * of_weights.double()
    )
    for a, b in zip(gradients, exact, strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.interpreted
def test_visible_samples_and_what_is_not_finite(samples):
    from hardmine_ns.marching.gpu import compositing as gpu

    thickness = 0.3 * torch.rand(len(samples))
    thickness[5] = torch.inf  # on ray 2, which ends there
    before = _exclusive_sums(thickness.double().clamp(max=_OPAQUE), samples)
    alpha = -torch.expm1(-thickness.double())
    seen = gpu.visible(thickness, samples.offsets, 0.05, 0.1)
    assert torch.equal(seen, (torch.exp(-before) >= 0.05) & (alpha >= 0.1))
    assert 0 < int(seen.sum()) < len(seen)
    thickness[40] = torch.nan  # on ray 3
    _, _, sums = gpu.composite(thickness, torch.ones(len(samples), 3), samples.midpoints, samples.offsets)
    assert sums.isfinite().all(1).tolist() == [True, True, True, False, True, True, True]
    assert sums[2, 3] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.interpreted
def test_samples_behind_those_of_all_rays_have_no_weight_and_no_gradient(samples):
    from hardmine_ns.marching.gpu import compositing as gpu

    thickness, colors, middles = torch.rand(len(samples) + 9), torch.rand(len(samples) + 9, 3), torch.rand(120)
    weights, after, _ = gpu.composite(thickness, colors, middles, samples.offsets)
    saved = (weights, after, torch.randn(7, 5), torch.randn(len(samples) + 9))
    for found in (weights, *gpu.composite_backward(colors, middles, samples.offsets, *saved)):
        assert not found[len(samples) :].any()
        assert found[: len(samples)].any()


@pytest.mark.interpreted
def test_no_rays():
    from hardmine_ns.marching.gpu import compositing as gpu

    empty, offsets = torch.zeros(0), torch.zeros(1, dtype=torch.int64)
    assert gpu.composite(empty, torch.zeros(0, 3), empty, offsets)[2].shape == (0, 5)
    assert len(gpu.visible(empty, offsets, 0.1, 0.1)) == 0


FLOATS = "thickness colors middles weights after sums grad_sums grad_weights of_thickness of_colors"
TYPES = dict.fromkeys(FLOATS.split(), "*fp32") | {"offsets": "*i64", "visible": "*u8"}
TYPES |= {"early_stop": "fp32", "alpha_threshold": "fp32"}


@pytest.mark.parametrize("name", ["composite_kernel", "composite_gradient_kernel", "visible_kernel"])
def test_builds_without_spilling(name, capability, triton_build):
    from hardmine_ns.marching.gpu import compositing as gpu

    constants = {"BLOCK": 32} | ({"WEIGHTS": True} if name == "composite_gradient_kernel" else {})
    build = triton_build(getattr(gpu, name), TYPES, constants, capability)
    assert build.spilled == 0
    assert build.shared == 0
    assert build.registers <= 64
