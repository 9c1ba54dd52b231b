"""The Triton kernels of colours: against the reference in Triton's interpreter, and built for absent GPUs."""

import pytest
import torch
from torch.nn.functional import normalize

from raygauss_ns.color import ColorBasis, colors_reference

pytest.importorskip("triton")


def random_basis(n, bands, lobes, generator):
    """Lobes of all widths, one of them all but flat and one a spike; axes of any length."""
    shapes = (n, 3), (n, bands, 3), (n, lobes, 3), (n, lobes), (n, lobes, 3)
    basis = ColorBasis(*(torch.randn(shape, generator=generator) for shape in shapes))
    basis.sg_sharpness[: n // 3] *= 10
    return basis


@pytest.mark.interpreted
@pytest.mark.parametrize(("bands", "lobes"), [(0, 0), (3, 0), (8, 2)])
def test_colors_and_gradients_are_the_references(bands, lobes):
    """Of the first degrees of longer rows; a Gaussian is where the camera is."""
    from raygauss_ns.color.gpu import GpuColors

    generator = torch.Generator().manual_seed(bands)
    n, center = 140, torch.tensor([[0.3, 0.0], [-0.2, 0.0], [0.1, 0.0]])[:, 0]
    means = torch.randn(n, 3, generator=generator)
    means[5] = center
    leaves = [tensor.requires_grad_() for tensor in (means, *random_basis(n, 8, lobes, generator))]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    colors = GpuColors.apply(*leaves[:2], leaves[2][:, :bands], *leaves[3:], center)
    basis = ColorBasis(exact[1], exact[2][:, :bands], *exact[3:])
    expected = colors_reference(basis, normalize(exact[0] - center.double(), dim=-1))
    torch.testing.assert_close(colors.double(), expected, rtol=1e-5, atol=1e-5)
    cotangent = torch.randn(n, 3, generator=generator)
    cotangent[7] = 0.0
    found = torch.autograd.grad(colors, leaves, cotangent, materialize_grads=True)
    wanted = torch.autograd.grad(expected, exact, cotangent.double(), materialize_grads=True)
    assert not found[0][5].any(), "the direction to the camera itself has no gradient"
    wanted[0][5] = 0.0
    for gradient, reference in zip(found, wanted, strict=True):
        assert float((gradient - reference).norm()) <= 1e-5 * float(reference.norm())
        assert not gradient[7].any()


FLOATS = (
    "means base rest amplitudes sharpness axes center colors gradient of_means of_base of_rest of_amplitudes "
    "of_sharpness of_axes"
)
TYPES = dict.fromkeys(FLOATS.split(), "*fp32") | {"number": "i32", "rest_stride": "i32", "center_stride": "i32"}


@pytest.mark.parametrize("name", ["color_kernel", "color_gradient_kernel"])
def test_builds_without_spilling(name, capability, triton_build):
    from raygauss_ns.color import gpu

    constants = {"BANDS": 8, "LOBES": 7, "BLOCK": gpu._BLOCK}
    build = triton_build(getattr(gpu, name), TYPES, constants, capability, num_warps=4)
    assert build.spilled == 0
    assert build.registers <= 128
