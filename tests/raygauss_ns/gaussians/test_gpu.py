"""The small Triton kernels of a training step: interpreted, against PyTorch's operations, and built for absent GPUs."""

import pytest
import torch

from ns_support.lenses.lens import LensType, make_lens
from raygauss_ns.casting import RayOutputs
from raygauss_ns.gaussians.losses import isotropy_loss
from raygauss_ns.gaussians.projection import View
from raygauss_ns.gaussians.renderer import over

pytest.importorskip("triton")


@pytest.mark.interpreted
@pytest.mark.parametrize("n", [1, 300])
def test_isotropy(n):
    """Spheres, needles of all lengths, and one so thin that its ratio overflows."""
    from raygauss_ns.gaussians.gpu import Isotropy

    torch.manual_seed(1)
    log_scales = 2.5 * torch.randn(n, 3) - 4
    log_scales[:1] = torch.tensor([0.0, -100.0, -100.0]) if n > 1 else log_scales[:1] * 3
    log_scales.requires_grad_()
    exact = log_scales.detach().double().requires_grad_()
    loss, expected = Isotropy.apply(log_scales, 0.7), isotropy_loss(exact, 0.7)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(3 * loss, log_scales)
    (wanted,) = torch.autograd.grad(3 * expected, exact)
    assert float((gradient - wanted).norm()) <= 1e-5 * float(wanted.norm())
    assert n == 1 or (gradient[1:].any() and not gradient[0].any())


@pytest.mark.interpreted
def test_observed():
    from raygauss_ns.gaussians.gpu import observed

    gradient = torch.randn(300, 3, generator=torch.Generator().manual_seed(1))
    gradient[7] = 0.0
    found = observed(gradient, 0.3)
    torch.testing.assert_close(found[0], 0.3 * gradient.norm(dim=-1))
    assert torch.equal(found[1], (torch.arange(300) != 7).float())


@pytest.mark.interpreted
@pytest.mark.parametrize("window", [(2, 3, 5, 6), (0, 0, 12, 16)])
@pytest.mark.parametrize("near", [0.0, 1.5])
def test_observed_in_a_view(window, near):
    """Of Gaussians before, beside and behind a camera, against the operations that a CPU uses."""
    from raygauss_ns.gaussians.gpu import observed

    generator = torch.Generator().manual_seed(2)
    gradient, means = torch.randn(400, 3, generator=generator), 2 * torch.randn(400, 3, generator=generator)
    gradient[7] = 0.0
    angle = torch.tensor(0.3)
    turn = torch.tensor([[angle.cos(), 0.0, angle.sin()], [0.0, 1.0, 0.0], [-angle.sin(), 0.0, angle.cos()]])
    pose = torch.cat([turn, torch.tensor([[0.1], [-0.2], [-1.0]])], dim=1)
    view = View(pose, make_lens(LensType.PERSPECTIVE, (14.0, 11.0), (7.5, 6.5), (16, 12)), window)
    found = observed(gradient, 0.3, means, view, near)
    lengths = 0.3 * gradient.norm(dim=-1)
    if near > 0:
        lengths *= (view.distances(means) / near).clamp_min(1.0)
    seen = gradient.any(-1)
    if view.fraction < 1:
        missed = view.misses(means)
        assert 20 < int(missed.sum()) < 300
        seen &= ~missed
    torch.testing.assert_close(found[0], lengths)
    assert torch.equal(found[1], seen.float())


@pytest.mark.interpreted
@pytest.mark.parametrize("asked", ["image", "all"])
def test_over_a_background(asked):
    """Of a caster's outputs, which are columns of one tensor; one colour for all rays, or a colour for each."""
    from raygauss_ns.gaussians.gpu import Over

    generator = torch.Generator().manual_seed(1)
    out = torch.rand(300, 5, generator=generator)
    out[3, 3], out[4, 3] = 1.0, 0.0
    background = torch.rand(3, generator=generator).expand(300, 3) if asked == "image" else torch.rand(300, 3)
    out.requires_grad_()
    exact = out.detach().double().requires_grad_()
    found = Over.apply(out[:, :3], out[:, 3], out[:, 4], background)
    wanted = over(RayOutputs(exact[:, :3], exact[:, 3], exact[:, 4]), background.double())
    for tensor, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(tensor.double(), reference, rtol=1e-5, atol=1e-6)
    # The depth of what is hardly seen is not compared: 1 - T has few digits there.
    count, seen = (1 if asked == "image" else 3), (exact.detach()[:, 3] < 0.99).double()
    cotangents = [torch.rand(tensor.shape, generator=generator, dtype=torch.float64) for tensor in wanted]
    cotangents[2] *= seen
    (gradient,) = torch.autograd.grad(found[:count], out, [tensor.float() for tensor in cotangents[:count]])
    (reference,) = torch.autograd.grad(wanted[:count], exact, cotangents[:count])
    torch.testing.assert_close(gradient.double(), reference, rtol=1e-4, atol=1e-5)


FLOATS = (
    "log_scales sums factor gradient found colors through depths background image accumulation mean_depths of_image "
    "of_accumulation of_mean_depths of_through of_depths means pose"
)
INTEGERS = "number color_stride through_stride depth_stride row_stride column_stride width height top left rows columns"
NUMBERS = "scale near fx fy cx cy"
TYPES = {
    **dict.fromkeys(FLOATS.split(), "*fp32"),
    **dict.fromkeys(INTEGERS.split(), "i32"),
    **dict.fromkeys(NUMBERS.split(), "fp32"),
}


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("isotropy_kernel", {}),
        ("isotropy_gradient_kernel", {}),
        ("observe_kernel", {"BY_DISTANCE": False, "CROPPED": False}),
        ("observe_kernel", {"BY_DISTANCE": True, "CROPPED": True}),
        ("over_kernel", {}),
        ("over_gradient_kernel", {"ACCUMULATION": True, "DEPTH": True}),
    ],
)
def test_builds_without_spilling(name, constants, capability, triton_build):
    from raygauss_ns.gaussians import gpu

    constants = constants | {"BLOCK": gpu._BLOCK}
    build = triton_build(getattr(gpu, name), TYPES, constants, capability, num_warps=4)
    assert build.spilled == 0
    assert build.registers <= 64
