import math

import pytest
import torch
from torch.nn.functional import normalize

from raygauss_ns.color.api import view_colors
from raygauss_ns.color.harmonics import rgb_to_sh_base, sh_basis
from raygauss_ns.color.reference import ColorBasis, colors_reference


def random_basis(count, degree=2, lobes=7, dtype=torch.float32):
    shapes = ((3,), ((degree + 1) ** 2 - 1, 3), (lobes, 3), (lobes,), (lobes, 3))
    return ColorBasis(*(torch.randn(count, *shape, dtype=dtype) for shape in shapes))


def directions(count, dtype=torch.float32):
    return normalize(torch.randn(count, 3, dtype=dtype), dim=-1)


def sphere(count):
    """Points of a Fibonacci lattice: equal weights integrate low-degree polynomials over the sphere."""
    i = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * i / count
    phi = math.pi * (1 + 5**0.5) * i
    r = (1 - z * z).sqrt()
    return torch.stack([r * phi.cos(), r * phi.sin(), z], -1)


def test_basis_is_orthonormal():
    basis = sh_basis(sphere(20_000), 2)
    gram = 4 * math.pi * basis.T @ basis / len(basis)
    torch.testing.assert_close(gram, torch.eye(9, dtype=torch.float64), atol=1e-4, rtol=0)


def test_signs_are_those_of_gaussian_splatting():
    x, y, z = 0.48, 0.6, 0.64
    basis = sh_basis(torch.tensor([x, y, z], dtype=torch.float64), 2)
    signs = torch.sign(basis).tolist()
    assert signs == [1, -1, 1, -1, 1, -1, math.copysign(1, 2 * z * z - x * x - y * y), -1, math.copysign(1, x - y)]


def test_base_coefficient_gives_the_colour():
    rgb = torch.rand(5, 3)
    basis = random_basis(5)._replace(sh_base=rgb_to_sh_base(rgb), sh_rest=torch.zeros(5, 8, 3))
    torch.testing.assert_close(colors_reference(basis.active(2, lobes=False), directions(5)), rgb)


def test_a_lobe_peaks_at_its_axis_and_falls_with_the_angle():
    """Along the axis a lobe adds its amplitude; at the angle theta e^(lambda (cos theta - 1)) of that."""
    sharpness = 3.0
    raw = math.log(math.expm1(sharpness))
    amplitude = torch.tensor([[[1.0, -2.0, 0.5]]])
    basis = ColorBasis(
        torch.zeros(1, 3), torch.zeros(1, 0, 3), amplitude, torch.tensor([[raw]]), torch.tensor([[[0.0, 0.0, 7.0]]])
    )
    for theta in (0.0, 0.3, math.pi / 2, math.pi):
        direction = torch.tensor([[math.sin(theta), 0.0, math.cos(theta)]])
        expected = 0.5 + amplitude[0] * math.exp(sharpness * (math.cos(theta) - 1))
        torch.testing.assert_close(colors_reference(basis, direction), expected)


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("lobes", [False, True])
def test_only_what_is_unlocked_counts(degree, lobes):
    torch.manual_seed(0)
    basis, seen = random_basis(6), directions(6)
    locked = basis._replace(sh_rest=basis.sh_rest.clone())
    locked.sh_rest[:, (degree + 1) ** 2 - 1 :] = 0
    if not lobes:
        locked = locked._replace(sg_amplitudes=torch.zeros(6, 7, 3))
    torch.testing.assert_close(colors_reference(basis.active(degree, lobes), seen), colors_reference(locked, seen))


@pytest.mark.parametrize(
    ("degree", "lobes"), [(0, 0), (1, 0), (2, 0), (0, 1), (2, 2), pytest.param(2, 7, marks=pytest.mark.slow)]
)
def test_gradients_of_the_reference(degree, lobes):
    torch.manual_seed(0)
    means = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    basis = [t.requires_grad_() for t in random_basis(4, degree, lobes, torch.float64)]
    center = torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, *b: view_colors(ColorBasis(*b), m, center), (means, *basis))


@pytest.mark.parametrize("count", [0, 1, 16, 31, 100, 5000])
@pytest.mark.parametrize(("degree", "lobes"), [(0, 0), (1, 2), (2, 0), (2, 7)])
def test_the_kernel_agrees_with_the_reference(count, degree, lobes):
    torch.manual_seed(count)
    center = torch.tensor([0.3, -0.2, 2.0])
    exact = [
        t.requires_grad_()
        for t in (torch.randn(count, 3).double(), *(t.double() for t in random_basis(count, degree, lobes)))
    ]
    rounded = [t.detach().float().requires_grad_() for t in exact]
    cotangent = torch.randn(count, 3)
    expected = view_colors(ColorBasis(*exact[1:]), exact[0], center.double())
    colors = view_colors(ColorBasis(*rounded[1:]), rounded[0], center)
    torch.testing.assert_close(colors, expected.float(), atol=2e-5, rtol=1e-5)
    expected.backward(cotangent.double())
    colors.backward(cotangent)
    for name, a, b in zip(("means", *ColorBasis._fields), rounded, exact, strict=True):
        if b.grad is not None and b.numel():
            error = (a.grad - b.grad).norm() / b.grad.norm().clamp_min(1e-3)
            assert error < 1e-5, (name, float(error))


@pytest.mark.parametrize("raw", [-80.0, -5.0, 0.0, 5.0, 80.0])
def test_the_kernels_softplus_holds_at_the_extremes(raw):
    basis = random_basis(31)._replace(sg_sharpness=torch.full((31, 7), raw, requires_grad=True))
    means = torch.randn(31, 3)
    colors = view_colors(basis, means, torch.zeros(3))
    torch.testing.assert_close(colors, colors_reference(basis, normalize(means, dim=-1)), atol=1e-4, rtol=1e-4)
    colors.sum().backward()
    assert bool(basis.sg_sharpness.grad.isfinite().all())


def test_gaussians_nobody_looks_at_are_left_out():
    torch.manual_seed(0)
    basis = ColorBasis(*(t.requires_grad_() for t in random_basis(63)))
    means = torch.randn(63, 3, requires_grad=True)
    alive = torch.rand(63) > 0.4
    colors = view_colors(basis, means, torch.zeros(3), alive)
    torch.testing.assert_close(colors[alive], view_colors(basis, means, torch.zeros(3))[alive])
    assert not colors[~alive].any()
    cotangent = torch.randn(63, 3)
    cotangent[:20] = 0  # alive, but no ray took up their colour
    colors.backward(cotangent)
    touched = alive & (torch.arange(63) >= 20)
    for parameter in (means, *basis):
        gradient = parameter.grad.flatten(1).norm(dim=-1)
        assert bool((gradient[touched] > 0).all())
        assert not gradient[~touched].any()


def test_a_gaussian_at_the_cameras_centre_has_finite_gradients():
    means = torch.zeros(3, 3, requires_grad=True)
    basis = ColorBasis(*(t.requires_grad_() for t in random_basis(3)))
    view_colors(basis, means, torch.zeros(3)).sum().backward()
    assert not means.grad.any()
    assert all(bool(t.grad.isfinite().all()) for t in basis)


def test_one_direction_serves_all():
    torch.manual_seed(0)
    basis, direction = random_basis(4), torch.tensor([0.0, 0.6, 0.8])
    torch.testing.assert_close(colors_reference(basis, direction), colors_reference(basis, direction.expand(4, 3)))


def test_unknown_degree_is_refused():
    with pytest.raises(ValueError, match=r"degree must be in 0\.\.2, got 3"):
        sh_basis(torch.ones(3), 3)
