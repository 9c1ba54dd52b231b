"""The harmonics' kernels: in Triton's interpreter as PyTorch has them and their gradient, and built for absent GPUs."""

import pytest
import torch

from hardmine_ns.rendering.field import spherical_harmonics

pytest.importorskip("triton")


@pytest.mark.interpreted
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_agrees_with_pytorch(rows):
    from hardmine_ns.rendering.gpu import harmonics as gpu

    torch.manual_seed(0)
    directions = torch.randn(rows, 3)  # of any length, which tells more of the polynomials
    own, exact = directions.clone().requires_grad_(), directions.double().requires_grad_()
    found, wanted = gpu.spherical_harmonics(own), spherical_harmonics(exact)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    gradient = torch.randn(rows, 16)
    found.backward(gradient)
    wanted.backward(gradient.double())
    torch.testing.assert_close(own.grad.double(), exact.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["harmonics_kernel", "harmonics_gradient_kernel"])
def test_builds_without_spilling(name, capability, triton_build):
    from hardmine_ns.rendering.gpu import harmonics as gpu

    types = dict.fromkeys(["directions", "gradient", "out"], "*fp32") | {"rows": "i32"}
    names = ["A", "B", "C0", "C1", "C2", "D0", "D1", "D2", "D3", "D4"]
    constants = dict(zip(names, gpu._FACTORS, strict=True)) | {"BLOCK": 128}
    build = triton_build(getattr(gpu, name), types, constants, capability, 4)
    assert build.spilled == 0
    assert build.registers <= 64
