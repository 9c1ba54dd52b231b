"""Small kernels on a GPU against the same on a CPU: Adam, RowAdam, SSIM, colours, losses, the resumed hash encoding."""

import pytest
import torch

from hardmine_ns.hash_encoding import HashEncoding, RowAdam
from ns_support.adam import SharedAdam, stepping_together
from ns_support.kernels.backend import check_gpu
from raygauss_ns.casting import RayOutputs
from raygauss_ns.color import ColorBasis, view_colors
from raygauss_ns.gaussians.losses import isotropy_loss
from raygauss_ns.gaussians.renderer import over
from raygauss_ns.ssim import mixed_difference, structural_similarity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"


def relative(found, wanted):
    return float((found.cpu().double() - wanted.double()).norm() / wanted.double().norm())


def test_a_kernel_runs():
    check_gpu(DEVICE)


@pytest.mark.parametrize("row_steps", [True, False])
@pytest.mark.parametrize("shape", [(100_003, 2), (64, 32), (7,), ()])
def test_row_adam(shape, row_steps):
    torch.manual_seed(0)
    start = torch.randn(shape)
    params = [torch.nn.Parameter(start.to(device)) for device in ("cpu", DEVICE)]
    optimizers = [RowAdam([param], lr=1e-2, row_steps=row_steps) for param in params]
    for _ in range(5):
        gradient = torch.randn(shape)
        if gradient.ndim:
            gradient[torch.rand(len(gradient)) < 0.7] = 0
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = gradient.to(param.device)
            optimizer.step()
    assert relative(params[1].detach(), params[0].detach()) < 1e-6
    states = [next(iter(optimizer.state.values())) for optimizer in optimizers]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name].cpu(), value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("height", "width"), [(11, 11), (200, 301), (800, 800)])
def test_structural_similarity(height, width):
    torch.manual_seed(0)
    truth = torch.rand(height, width, 3)
    image = truth + 0.1 * torch.randn(height, width, 3)

    def differentiate(device):
        leaf = image.to(device).requires_grad_()
        value = structural_similarity(leaf, truth.to(device))
        return value.detach().cpu(), torch.autograd.grad(value, leaf)[0].cpu()

    (value, gradient), (expected, wanted) = differentiate(DEVICE), differentiate("cpu")
    assert float(value) == pytest.approx(float(expected), abs=1e-5)
    assert relative(gradient, wanted) < 1e-5


def agree(compute, *inputs):
    """The same outputs and gradients of the inputs on a GPU and in float64 on a CPU."""
    leaves = [tensor.to(DEVICE).requires_grad_() for tensor in inputs]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    found, wanted = compute(*leaves), compute(*exact)
    assert relative(found.detach(), wanted.detach()) < 1e-5
    cotangent = torch.randn(wanted.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(found, leaves, cotangent.float().to(DEVICE))
    for gradient, reference in zip(gradients, torch.autograd.grad(wanted, exact, cotangent), strict=True):
        assert relative(gradient, reference) < 1e-4


@pytest.mark.parametrize(("bands", "lobes"), [(0, 0), (3, 1), (8, 7)])
def test_colors(bands, lobes):
    torch.manual_seed(0)
    shapes = (5_000, 3), (5_000, 3), (5_000, bands, 3), (5_000, lobes, 3), (5_000, lobes), (5_000, lobes, 3)
    center = torch.tensor([0.1, 0.2, 5.0])

    def colors(means, *basis):
        used = ColorBasis(*basis)
        return view_colors(used, means, center.to(means)) + 0 * sum(tensor.sum() for tensor in used)

    agree(colors, *map(torch.randn, shapes))


def test_losses_and_backgrounds():
    torch.manual_seed(0)
    truth, background = torch.rand(200, 301, 3), torch.tensor([0.2, 0.5, 1.0])
    agree(lambda image: mixed_difference(image, truth.to(image), 0.2), torch.rand(200, 301, 3))
    agree(lambda scales: isotropy_loss(scales, 0.3), 2 * torch.randn(5_000, 3) - 4)
    agree(
        lambda rgb, through: over(RayOutputs(rgb, through, through), background.to(rgb).expand_as(rgb))[0],
        torch.rand(5_000, 3),
        torch.rand(5_000),
    )


def test_adam_of_several_parameters():
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((10_000, 3), (10_000, 8, 3), (10_000,), (3,))]
    params = {device: [tensor.to(device, copy=True).requires_grad_() for tensor in start] for device in (DEVICE, "cpu")}
    optimizers = {
        device: [SharedAdam([p], lr=10.0**-i, eps=1e-15, fused=True) for i, p in enumerate(group)]
        for device, group in params.items()
    }
    for _ in range(5):
        gradients = [torch.randn_like(tensor) for tensor in start]
        for device, group in params.items():
            for parameter, gradient in zip(group, gradients, strict=True):
                parameter.grad = gradient.to(device)
            with stepping_together(optimizers[device]):
                for optimizer in optimizers[device]:
                    optimizer.step()
    for found, wanted in zip(params[DEVICE], params["cpu"], strict=True):
        assert relative(found.detach(), wanted.detach()) < 1e-5
    assert all(float(next(iter(o.state.values()))["step"]) == 5 for o in optimizers[DEVICE])


def test_resuming_from_known_features_gives_the_same_gradients():
    torch.manual_seed(0)
    encoding = HashEncoding(num_levels=8, log2_hashmap_size=14).to(DEVICE)
    positions = torch.rand(5_000, 3, device=DEVICE, requires_grad=True)
    assert encoding.can_resume
    with torch.no_grad():
        features = encoding(positions)
    found = []
    for output in (encoding(positions), encoding.resume(features, positions)):
        found.append((output.detach(), *torch.autograd.grad(output.square().sum(), [encoding.table, positions])))
    for resumed, wanted in zip(found[1], found[0], strict=True):
        assert relative(resumed, wanted.cpu()) < 1e-6
