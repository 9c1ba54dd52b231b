import math

import pytest
import torch

from raygauss_ns.color import rgb_to_sh_base, sh_basis, sh_colors


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
    base = rgb_to_sh_base(rgb)
    colors = sh_colors(base, torch.zeros(5, 8, 3), torch.nn.functional.normalize(torch.randn(5, 3), dim=-1), 2)
    torch.testing.assert_close(colors, rgb)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_only_unlocked_degrees_count(degree):
    torch.manual_seed(0)
    base, rest = torch.randn(6, 3), torch.randn(6, 8, 3)
    directions = torch.nn.functional.normalize(torch.randn(6, 3), dim=-1)
    locked = rest.clone()
    locked[:, (degree + 1) ** 2 - 1 :] = 0
    torch.testing.assert_close(sh_colors(base, rest, directions, degree), sh_colors(base, locked, directions, 2))


def test_gradients_reach_the_positions():
    torch.manual_seed(0)
    means = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    base, rest = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 8, 3, dtype=torch.float64)
    center = torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda m: sh_colors(base, rest, torch.nn.functional.normalize(m - center, dim=-1), 2), means
    )


def test_one_direction_serves_all():
    torch.manual_seed(0)
    base, rest, direction = torch.randn(4, 3), torch.randn(4, 8, 3), torch.tensor([0.0, 0.6, 0.8])
    torch.testing.assert_close(sh_colors(base, rest, direction, 2), sh_colors(base, rest, direction.expand(4, 3), 2))


def test_unknown_degree_is_refused():
    with pytest.raises(ValueError, match=r"degree must be in 0\.\.2, got 3"):
        sh_basis(torch.ones(3), 3)
