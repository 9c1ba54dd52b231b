import pytest
import torch

from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SETTINGS = CastSettings(step=0.05, density_threshold=1e-6, sample_offset=0.5)


def cast_on(device, backend):
    generator = torch.Generator().manual_seed(0)
    means, scales = torch.rand(20, 3, generator=generator) - 0.5, 0.1 + 0.2 * torch.rand(20, 3, generator=generator)
    quats, densities = torch.randn(20, 4, generator=generator), torch.rand(20, generator=generator) + 0.5
    colors = torch.rand(20, 3, generator=generator)
    leaves = [tensor.to(device).requires_grad_() for tensor in (means, scales, quats, densities, colors)]
    directions = torch.randn(24, 3, generator=generator) * 0.2 + torch.tensor([0.0, 0.0, 1.0])
    directions = torch.nn.functional.normalize(directions, dim=-1).to(device)
    origins = torch.tensor([[0.0, 0.0, -2.0]]).repeat(24, 1).to(device)
    nears, fars = torch.zeros(24, device=device), torch.full((24,), torch.inf, device=device)
    rays = Rays(origins, directions, nears, fars, image_width=6)
    outputs = cast(Gaussians(*leaves[:4]), leaves[4], rays, SETTINGS, backend=backend)
    cotangent = torch.randn(24, 5, generator=generator).to(device)
    stacked = torch.cat([outputs.rgb, outputs.transmittance[:, None], outputs.depth[:, None]], 1)
    return stacked, torch.autograd.grad(stacked, leaves, cotangent)


@pytest.mark.parametrize("backend", ["auto", "cpu", "gpu", "reference"])
def test_cuda_tensors_in_cuda_tensors_out(backend):
    outputs, gradients = cast_on("cuda", backend)
    expected, expected_gradients = cast_on("cpu", "cpu")
    assert outputs.is_cuda
    assert expected[:, 3].min() < 0.8
    torch.testing.assert_close(outputs.cpu(), expected, rtol=0, atol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient.is_cuda
        assert (gradient.cpu() - wanted).norm() < 1e-4 * wanted.norm()
