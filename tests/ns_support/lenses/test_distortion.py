"""Against OpenCV's formulas written out in float64, and against OpenCV and nerfstudio themselves."""

import math

import cv2
import numpy as np
import pytest
import torch
from nerfstudio.cameras.camera_utils import radial_and_tangential_undistort

from ns_support.lenses.distortion import plane_map, stack_maps

MAPS = {
    "none": {},
    "phone": {"radial": (0.0578421, -0.0805099, 0.0, 0.0), "tangential": (-0.000980296, 0.00015575)},
    "barrel": {"radial": (-0.3, 0.12, -0.03, 0.004)},
    "pincushion": {"radial": (0.4, 0.1, 0.02, 0.01), "tangential": (0.01, 0.005)},
    "folds": {"radial": (-0.3,)},
    "folds aside": {"radial": (-0.3, 0.02), "tangential": (0.02, -0.03)},
    "only aside": {"tangential": (0.1, 0.1)},
    "fisheye": {"radial": (0.05, -0.01, 0.002, -0.0005), "limit": math.pi},
    "prism": {"tangential": (0.002, -0.001), "prism": (0.01, -0.003, 0.002, 0.004)},
}


def spread(radius, count=4000, seed=0):
    """Points all over a disc, its rim and its centre included."""
    random = torch.Generator().manual_seed(seed)
    r = min(radius, 2.0) * 0.9999 * torch.rand(count, 1, generator=random, dtype=torch.float64).sqrt()
    r[:2] = torch.tensor([[0.0], [min(radius, 2.0) * 0.9999]])
    angle = 2 * math.pi * torch.rand(count, 1, generator=random, dtype=torch.float64)
    return r * torch.cat([angle.cos(), angle.sin()], 1)


def written_out(points, radial=(), tangential=(0.0, 0.0), prism=(0.0,) * 4, limit=None):
    """The model as OpenCV's documentation has it, k4 as nerfstudio has it."""
    x, y = points.unbind(-1)
    r2 = x**2 + y**2
    factor = 1 + sum(k * r2**i for i, k in enumerate(radial, start=1))
    (p1, p2), (s1, s2, s3, s4) = tangential, prism
    u = x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x**2) + s1 * r2 + s2 * r2**2
    v = y * factor + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y + s3 * r2 + s4 * r2**2
    return torch.stack([u, v], -1)


@pytest.mark.parametrize("name", MAPS)
def test_forward_and_jacobian(name):
    distortion = plane_map(**MAPS[name])
    points = spread(distortion.radius).requires_grad_()
    expected = written_out(points, **MAPS[name])
    torch.testing.assert_close(distortion(points), expected, atol=1e-14, rtol=1e-14)
    rows = [torch.autograd.grad(expected[:, i].sum(), points, retain_graph=True)[0] for i in range(2)]
    torch.testing.assert_close(distortion.jacobian(points.detach()), torch.stack(rows, 1), atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("name", MAPS)
def test_inverse_finds_every_point_of_the_disc(name):
    distortion = plane_map(**MAPS[name])
    points = spread(distortion.radius)
    images = written_out(points, **MAPS[name])
    found, exist = distortion.inverse(images)
    assert exist.all()
    # Where F flattens out, at the rim, a rounding error of the image moves the point by much more.
    torch.testing.assert_close(written_out(found, **MAPS[name]), images, atol=5e-15, rtol=1e-14)
    inner = torch.linalg.vector_norm(points, dim=-1) < 0.98 * distortion.radius
    torch.testing.assert_close(found[inner], points[inner], atol=1e-12, rtol=0)


def test_radius_of_radial_distortion_is_where_it_folds():
    assert plane_map((-0.3,)).radius == pytest.approx(1 / math.sqrt(0.9), abs=1e-12)
    assert plane_map((0.3,)).radius == math.inf
    assert plane_map((0.3,), limit=math.pi).radius == math.pi
    assert plane_map().radius == math.inf
    # Across: 1 - 2 |p| r vanishes later than 1 - 6 |p| r outwards.
    assert plane_map((), (0.3, 0.4)).radius == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_symmetric_part_of_the_jacobian_is_positive_on_the_disc(name):
    distortion = plane_map(**MAPS[name])
    jacobian = distortion.jacobian(spread(distortion.radius))
    assert torch.linalg.eigvalsh(0.5 * (jacobian + jacobian.transpose(1, 2))).min() > 0


def test_images_beyond_the_fold_have_no_point():
    distortion = plane_map((-0.3,))
    furthest = 2 / 3 / math.sqrt(0.9)  # r (1 - 0.3 r^2) where r^2 = 1 / 0.9
    angle = torch.linspace(0, 6, 50, dtype=torch.float64)[:, None]
    around = torch.cat([angle.cos(), angle.sin()], 1)
    found, exist = distortion.inverse(around * furthest * 0.999999)
    assert exist.all()
    assert (torch.linalg.vector_norm(found, dim=-1) < distortion.radius).all()
    for beyond in (1.000001, 1.5, 100.0):
        found, exist = distortion.inverse(around * furthest * beyond)
        assert not exist.any()
        assert not found.any()


def test_a_fold_aside_leaves_no_wrong_points():
    """All that is found is mapped to where it should be, and is in the disc; the rest of a wide image is not found."""
    distortion = plane_map(**MAPS["folds aside"])
    images = spread(2.0) * 2
    found, exist = distortion.inverse(images)
    assert 0 < exist.sum() < len(images)
    torch.testing.assert_close(distortion(found)[exist], images[exist], atol=1e-13, rtol=0)
    assert distortion.contains(found).all()


@pytest.mark.parametrize("name", ["phone", "barrel", "pincushion"])
def test_opencv_undistorts_to_the_same_points(name):
    k, p = MAPS[name]["radial"], MAPS[name].get("tangential", (0.0, 0.0))
    images = spread(0.7, 200)
    coefficients = np.array([k[0], k[1], *p, k[2]])
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 500, 1e-15)
    expected = cv2.undistortPointsIter(images.numpy()[:, None], np.eye(3), coefficients, None, None, criteria)[:, 0]
    found, exist = plane_map(k[:3], p).inverse(images)
    assert exist.all()
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-9, rtol=0)


def test_nerfstudio_undistorts_to_the_same_points_in_float32():
    """And why its function is not used: beyond the fold it gives some point, in front of the camera or not."""
    images = spread(0.7)
    coefficients = torch.tensor([*MAPS["phone"]["radial"], *MAPS["phone"]["tangential"]])
    found, _ = plane_map(**MAPS["phone"]).inverse(images)
    theirs = radial_and_tangential_undistort(images.float(), coefficients)
    assert 1e-8 < (theirs - found).abs().max() < 1e-6
    beyond = torch.tensor([[0.9, 0.0], [0.0, -1.0], [0.6, 0.6]], dtype=torch.float64)
    theirs = radial_and_tangential_undistort(beyond, torch.tensor([-0.3, 0, 0, 0, 0, 0], dtype=torch.float64))
    assert theirs.isfinite().all()
    off = torch.linalg.vector_norm(written_out(theirs, **MAPS["folds"]) - beyond, dim=-1)
    on_another_branch = torch.linalg.vector_norm(theirs, dim=-1) > plane_map(**MAPS["folds"]).radius
    assert ((off > 0.1) | on_another_branch).all()
    assert not plane_map(**MAPS["folds"]).inverse(beyond)[1].any()


def test_a_map_for_each_point():
    maps = [plane_map(**MAPS["phone"]), plane_map((-0.3, 0.0, 0.0, 0.0)), plane_map((0.0,) * 4, (0.1, 0.1))] * 4
    images = 1.5 * spread(1.0, 12)
    found, exist = stack_maps(maps).inverse(images)
    for i, one in enumerate(maps):
        point, known = one.inverse(images[i : i + 1])
        assert known[0] == exist[i]
        torch.testing.assert_close(found[i], point[0], atol=1e-13, rtol=0)
    assert 0 < exist.sum() < 12
    assert stack_maps(maps[:1] * 2) == maps[0]  # what all have in common stays a number


def test_shapes_and_empty_input():
    distortion = plane_map(**MAPS["phone"])
    found, exist = distortion.inverse(spread(0.5, 24).view(2, 3, 4, 2))
    assert (found.shape, exist.shape, found.dtype) == ((2, 3, 4, 2), (2, 3, 4), torch.float64)
    assert distortion.inverse(torch.zeros(0, 2))[0].shape == (0, 2)
    assert distortion.jacobian(torch.zeros(0, 2)).shape == (0, 2, 2)


def test_rejects_what_is_not_a_number():
    with pytest.raises(ValueError, match="must be finite"):
        plane_map((math.nan,))
