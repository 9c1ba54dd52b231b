import math

import pytest
import torch

from ns_support.viewer.normals import normal_picture, surface_normals


def rays(count=200):
    torch.manual_seed(0)
    origins = torch.tensor([0.0, 0.0, 5.0]) + 0.2 * torch.randn(count, 3, dtype=torch.float64)
    targets = 0.4 * torch.randn(count, 3, dtype=torch.float64)
    return origins, torch.nn.functional.normalize(targets - origins, dim=-1)


def to_ball(origins, directions):
    """Distance to the unit ball around the origin; infinite past it."""
    along = (origins * directions).sum(-1)
    root = along**2 - (origins**2).sum(-1) + 1
    return torch.where(root > 0, -along - root.clamp(min=0).sqrt(), torch.inf)


def test_normals_of_a_ball_are_its_points():
    origins, directions = rays()
    distance = to_ball(origins, directions)
    clear = to_ball(origins, directions) < 4.8  # away from the outline, where the slope is infinite
    found = surface_normals(to_ball, origins, directions, 1e-4)
    points = origins + distance[:, None] * directions
    assert clear.sum() > 100
    torch.testing.assert_close(found[clear], points[clear], atol=1e-5, rtol=0)


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (0.0, -0.6, 0.8)])
def test_normals_of_a_plane_are_exact_whatever_the_shift(normal):
    origins, directions = rays()
    n = torch.tensor(normal, dtype=torch.float64)

    def to_plane(origins, directions):
        return -(origins @ n) / (directions @ n)

    found = surface_normals(to_plane, origins, directions, 0.3)
    torch.testing.assert_close(found, n.expand_as(found), atol=1e-9, rtol=0)


def test_where_nothing_is_hit_the_normal_looks_back():
    origins, directions = rays(5)
    found = surface_normals(lambda o, d: torch.full_like(o[:, 0], math.inf), origins, directions, 0.1)
    torch.testing.assert_close(found, -directions)


def test_the_picture_is_what_the_exporters_expect():
    normals = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    picture = normal_picture(normals, torch.tensor([1.0, 0.6, 0.4]))
    assert picture.tolist() == [[0.5, 0.5, 1.0], [0.0, 0.5, 0.5], [0.5, 0.5, 0.5]]
