"""Every lens against its closed form in NumPy's float64, point by point; tests/ns_support/test_rays.py has the rays."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from ns_support.lenses.lens import EYES_APART, LensType, make_lens, stack_lenses

PHONE = (0.0578421, -0.0805099, 0.01, 0.002, -0.000980296, 0.00015575)
FISH = (0.05, -0.01, 0.002, -0.0005, 0.0, 0.0)
ARIA = (0.03, -0.01, 0.002, 0.001, -0.0003, 0.0001, 0.0008, -0.0005, 0.001, -0.0002, 0.0007, 0.0003)
SIZE = (40, 30)
CENTER = (20.3, 14.8)
FOCAL = {
    LensType.PERSPECTIVE: (31.0, 29.0),
    LensType.FISHEYE: (14.0, 13.0),
    LensType.FISHEYE624: (14.0, 13.0),
    LensType.ORTHOPHOTO: (10.0, 12.0),
}
COEFFICIENTS = {LensType.PERSPECTIVE: PHONE, LensType.FISHEYE: FISH, LensType.FISHEYE624: ARIA}


def lens_of(kind, coefficients=None):
    focal = FOCAL.get(kind, (20.0, 30.0))
    return make_lens(kind, focal, CENTER, SIZE, COEFFICIENTS.get(kind, ()) if coefficients is None else coefficients)


def rays_of(lens):
    column = torch.arange(lens.width, dtype=torch.float64) + 0.5
    row = torch.arange(lens.height, dtype=torch.float64)[:, None] + 0.5
    return lens.rays(column, row), column.expand(lens.height, -1), row.expand(-1, lens.width)


@pytest.mark.parametrize("kind", LensType)
def test_points_on_the_rays_project_to_their_pixels(kind):
    """At distances near and far; closed forms of the rays themselves are in test_rays.py."""
    lens = lens_of(kind)
    rays, column, row = rays_of(lens)
    for distance in (0.3, 1.0, 50.0):
        points = rays.directions * distance + (0.0 if rays.origins is None else rays.origins)
        seen_column, seen_row, seen = lens.project(points.reshape(-1, 3))
        exist = torch.ones_like(seen) if rays.exist is None else rays.exist.reshape(-1)
        assert torch.equal(seen, exist)
        assert exist.float().mean() > 0.9
        torch.testing.assert_close(seen_column[seen], column.reshape(-1)[seen], atol=1e-9, rtol=0)
        torch.testing.assert_close(seen_row[seen], row.reshape(-1)[seen], atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", LensType)
def test_directions_are_unit_vectors(kind):
    directions = rays_of(lens_of(kind))[0].directions
    torch.testing.assert_close(torch.linalg.vector_norm(directions, dim=-1), torch.ones(30, 40, dtype=torch.float64))


def test_a_distorted_perspective_point_by_hand():
    """OpenCV's formulas for a point two ahead, one to the right and half up."""
    k1, k2, k3, k4, p1, p2 = PHONE
    x, y = 0.5, -0.25
    r2 = x * x + y * y
    d = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
    u = x * d + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * d + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    column, row, seen = lens_of(LensType.PERSPECTIVE).project(torch.tensor([[1.0, 0.5, -2.0]], dtype=torch.float64))
    assert seen.all()
    assert (column.item(), row.item()) == pytest.approx((20.3 + 31 * u, 14.8 + 29 * v), abs=1e-12)


def test_a_fisheye_point_behind_the_camera():
    """100 degrees from the axis, to the right: image at theta_d = theta + k1 theta^3 + ..."""
    theta = math.radians(100)
    theta_d = theta * (1 + sum(k * theta ** (2 * i) for i, k in enumerate(FISH[:4], start=1)))
    point = torch.tensor([[math.sin(theta), 0.0, -math.cos(theta)]], dtype=torch.float64)
    wide = make_lens(LensType.FISHEYE, (10.0, 10.0), (20.0, 15.0), SIZE, FISH)
    column, row, seen = wide.project(point)
    assert seen.all()
    assert (column.item(), row.item()) == pytest.approx((20 + 10 * theta_d, 15.0))


def test_what_lies_behind_is_not_seen():
    behind = torch.tensor([[0.1, 0.1, 2.0]], dtype=torch.float64)
    for kind in (LensType.PERSPECTIVE, LensType.ORTHOPHOTO):
        assert not lens_of(kind).project(behind).seen.any()
    for kind in (LensType.EQUIRECTANGULAR, LensType.OMNIDIRECTIONALSTEREO_L, LensType.OMNIDIRECTIONALSTEREO_R):
        assert lens_of(kind).project(behind).seen.all()


def test_points_beyond_the_fold_are_not_seen():
    """Far aside, a barrel of k1 = -0.3 would show them near the centre again."""
    lens = lens_of(LensType.PERSPECTIVE, (-0.3, 0.0, 0.0, 0.0, 0.0, 0.0))
    fold = 1 / math.sqrt(0.9)
    points = torch.tensor([[0.2, 0.0, -1.0], [1.8, 0.0, -1.0]], dtype=torch.float64)
    assert points[1, 0] > fold
    assert lens.project(points).seen.tolist() == [True, False]


def test_pixels_beyond_the_fold_have_no_ray():
    lens = make_lens(LensType.PERSPECTIVE, (20.0, 20.0), (20.0, 15.0), SIZE, (-0.3, 0.0, 0.0, 0.0, 0.0, 0.0))
    rays, column, row = rays_of(lens)
    furthest = 20 * 2 / 3 / math.sqrt(0.9)
    assert torch.equal(rays.exist, torch.hypot(column - 20, row - 15) < furthest)
    assert 0.1 < rays.exist.double().mean() < 0.9
    assert (rays.directions[~rays.exist] == torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)).all()


def test_a_fisheye_ends_at_half_a_turn():
    lens = make_lens(LensType.FISHEYE, (4.0, 4.0), (20.0, 15.0), SIZE)
    rays, column, row = rays_of(lens)
    assert torch.equal(rays.exist, torch.hypot(column - 20, row - 15) < 4 * math.pi)


def test_a_point_within_the_viewing_circle_has_no_place_in_a_stereo_panorama():
    near = torch.tensor([[0.4 * EYES_APART, 1.0, 0.0], [0.6 * EYES_APART, 1.0, 0.0]], dtype=torch.float64)
    assert lens_of(LensType.OMNIDIRECTIONALSTEREO_L).project(near).seen.tolist() == [False, True]


def test_a_panorama_wraps_around():
    """The principal point at a quarter of the image: what is behind lies a half image further."""
    lens = make_lens(LensType.EQUIRECTANGULAR, (20.0, 20.0), (10.0, 10.0), (40, 20))
    points = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.01]], dtype=torch.float64)
    column, _, seen = lens.project(points)
    assert seen.all()
    assert column[:2].tolist() == pytest.approx([10.0, 30.0])
    assert column[2] == pytest.approx(40.0, abs=0.1)


@pytest.mark.parametrize("kind", LensType)
def test_pixel_size_is_what_moves_the_image_by_a_pixel(kind):
    """Differences of the projection, over directions in the image plane or across the ray."""
    lens = lens_of(kind)
    rays, _, _ = rays_of(lens)
    origins = torch.zeros(3, dtype=torch.float64) if rays.origins is None else rays.origins[12:18:3, 15:25:3]
    direction = rays.directions[12:18:3, 15:25:3].reshape(-1, 3)  # near the axis, where the two meanings meet
    points = 2.0 * direction + torch.as_tensor(origins).reshape(-1, 3)
    step, fastest = 1e-5, torch.zeros(len(points), dtype=torch.float64)
    for angle in np.linspace(0, np.pi, 181):
        across = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64).expand_as(direction)
        if kind not in (LensType.PERSPECTIVE, LensType.ORTHOPHOTO):
            right = torch.linalg.cross(
                direction, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand_as(direction)
            )
            right = torch.nn.functional.normalize(right, dim=-1)
            across = math.cos(angle) * right + math.sin(angle) * torch.linalg.cross(right, direction)
        one, other = lens.project(points + step * across), lens.project(points - step * across)
        fastest = torch.maximum(fastest, torch.hypot(one.column - other.column, one.row - other.row) / (2 * step))
    # A fisheye's columns are closer where theta / sin(theta) > 1, which does not count; nor do a panorama's.
    tolerance = 1e-3 if kind in (LensType.PERSPECTIVE, LensType.ORTHOPHOTO) else 0.1
    torch.testing.assert_close(lens.pixel_size(points), 1 / fastest, rtol=tolerance, atol=0)


def test_pixel_size_of_a_fisheye_outwards():
    """At 60 degrees: the distance times d theta / d pixel, along and across the image."""
    theta = math.radians(60)
    lens = make_lens(LensType.FISHEYE, (10.0, 10.0), (20.0, 15.0), SIZE, FISH)

    def radius(angle):
        return angle * (1 + sum(k * angle ** (2 * i) for i, k in enumerate(FISH[:4], start=1)))

    slope = (radius(theta + 1e-6) - radius(theta - 1e-6)) / 2e-6
    point = torch.tensor([[3 * math.sin(theta), 0.0, -3 * math.cos(theta)]], dtype=torch.float64)
    assert lens.pixel_size(point).item() == pytest.approx(3 / (10 * max(slope, radius(theta) / theta)), rel=1e-6)


def test_the_inverse_of_a_fisheye_by_another_root_finder():
    lens = lens_of(LensType.FISHEYE)
    rays, column, row = rays_of(lens)
    for i, j in ((0, 0), (29, 39), (3, 17), (15, 20)):
        u, v = (column[i, j].item() - 20.3) / 14, (row[i, j].item() - 14.8) / 13
        image = math.hypot(u, v)

        def excess(t, image=image):
            return t * (1 + sum(k * t ** (2 * n) for n, k in enumerate(FISH[:4], start=1))) - image

        theta = brentq(excess, 0, 2.1, xtol=1e-15)
        expected = [math.sin(theta) * u / image, -math.sin(theta) * v / image, -math.cos(theta)]
        assert rays.directions[i, j].tolist() == pytest.approx(expected, abs=1e-13)


def test_a_stack_of_lenses_is_each_of_them():
    lenses = [lens_of(LensType.PERSPECTIVE), lens_of(LensType.PERSPECTIVE, (-0.2, 0.05, 0.0, 0.0, 0.01, 0.0))]
    column, row = torch.tensor([3.5, 30.5], dtype=torch.float64), torch.tensor([7.5, 21.5], dtype=torch.float64)
    together = stack_lenses(lenses).rays(column, row).directions
    for i, lens in enumerate(lenses):
        torch.testing.assert_close(together[i], lens.rays(column[i], row[i]).directions, atol=1e-14, rtol=0)


def test_rejects_impossible_lenses():
    with pytest.raises(ValueError, match="focal lengths must be positive"):
        make_lens(LensType.PERSPECTIVE, (0.0, 1.0), (1.0, 1.0), SIZE)
    with pytest.raises(ValueError, match="fisheye624 lens has 12 distortion coefficients, got 6"):
        make_lens(LensType.FISHEYE624, (1.0, 1.0), (1.0, 1.0), SIZE, PHONE)
    assert lens_of(LensType.EQUIRECTANGULAR, PHONE) == lens_of(LensType.EQUIRECTANGULAR)
