"""The Triton kernels of SSIM: against the library in Triton's interpreter, and built for absent GPUs."""

import pytest
import torch

pytest.importorskip("triton")
from pytorch_msssim import ssim

from raygauss_ns.ssim.api import window_weights


def weights(taps):
    """Of the window: in the interpreter, a smaller one tests as much."""
    middle = window_weights()[5 - taps // 2 : 6 + taps // 2]
    return tuple((middle / middle.sum()).tolist())


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("height", "width", "taps", "share"),
    [(3, 3, 3, 1.0), (13, 50, 3, 0.2), pytest.param(13, 50, 11, 1.0, marks=pytest.mark.slow)],
)
def test_value_and_gradient_are_the_librarys(height, width, taps, share):
    from raygauss_ns.ssim.gpu import Mixture

    torch.manual_seed(0)
    truth = torch.rand(height, width, 3)
    image = (truth + 0.1 * torch.randn(height, width, 3)).requires_grad_()
    exact = image.detach().double().requires_grad_()
    batches = (tensor.permute(2, 0, 1)[None] for tensor in (exact, truth.double()))
    value = Mixture.apply(image, truth, share, weights(taps))
    similarity = ssim(*batches, data_range=1.0, win_size=taps)
    expected = (1 - share) * (exact - truth).abs().mean() + share * (1 - similarity)
    (gradient,) = torch.autograd.grad(3 * value, image)
    (wanted,) = torch.autograd.grad(3 * expected, exact)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), abs=2e-6)
    assert float((gradient - wanted).norm()) < 1e-5 * float(wanted.norm())
    with torch.no_grad():
        assert Mixture.apply(image, truth, share, weights(taps)) == value


TYPES = dict.fromkeys(["image", "truth", "weights", "slopes", "totals", "gradient", "factor", "value"], "*fp32")
TYPES |= dict.fromkeys(["stride", "rows", "valid", "programs"], "i32")
TYPES |= dict.fromkeys(["scale", "similarity_scale", "share"], "fp32")


@pytest.mark.parametrize("name", ["similarity_kernel", "similarity_gradient_kernel"])
def test_builds_without_spilling(name, capability, triton_build):
    from raygauss_ns.ssim import gpu

    constants = {"TAPS": 11, "ROWS": gpu._ROWS, "BLOCK": gpu._BLOCK} | (
        {"DIFFERENTIATE": True} if name == "similarity_kernel" else {}
    )
    build = triton_build(getattr(gpu, name), TYPES, constants, capability, num_warps=4)
    assert build.spilled == 0
    assert build.registers <= 64


def test_the_sum_builds_without_spilling(capability, triton_build):
    from raygauss_ns.ssim import gpu

    build = triton_build(gpu.mixture_kernel, TYPES, {"BLOCK": gpu._TOTALS}, capability, num_warps=4)
    assert build.spilled == 0
    assert build.registers <= 64
