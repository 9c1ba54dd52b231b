"""RowAdam, structural similarity and the resumed hash encoding on a GPU against the same on a CPU."""

import pytest
import torch

from hardmine_ns.hash_encoding import HashEncoding, RowAdam
from ns_support.kernels.backend import check_gpu
from raygauss_ns.ssim import structural_similarity

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
