import math

import pytest
import torch

from ns_support.lenses.lens import Lens, LensType, make_lens
from raygauss_ns.gaussians.initialization import StartPoints, frustum_points, gap_points
from raygauss_ns.gaussians.projection import in_camera_space
from raygauss_ns.gaussians.scene_scale import coarsest_downscales, content_distance, resolved_step, scene_unit

BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])


def looking(centers, targets):
    """[C, 3, 4] world to camera of cameras that look along -z at a target, y about up."""
    poses = []
    for center, target in zip(centers, targets, strict=True):
        back = torch.nn.functional.normalize(center - target, dim=0)
        right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), back), dim=0)
        rotation = torch.stack([right, torch.linalg.cross(back, right), back])
        poses.append(torch.cat([rotation, -(rotation @ center)[:, None]], 1))
    return torch.stack(poses)


def ring(radius, center=(0.0, 0.0, 0.0), count=8, outward=False):
    angles = torch.arange(count) * (2 * math.pi / count)
    around = torch.stack([angles.cos(), torch.zeros(count), angles.sin()], -1)
    middle = torch.tensor(center)
    targets = middle + (2 * radius * around if outward else torch.zeros(count, 3))
    return looking(middle + radius * around, targets)


def lenses(count, focal=300.0, kind=LensType.PERSPECTIVE, size=(270, 480)):
    return [make_lens(kind, (focal, focal), (size[0] / 2, size[1] / 2), size)] * count


def test_distance_is_that_of_the_point_that_all_cameras_look_at():
    assert content_distance(ring(0.7, center=(0.2, -0.3, 0.5))) == pytest.approx(0.7, rel=1e-5)


def test_distance_is_that_of_the_points_where_there_are_some():
    generator = torch.Generator().manual_seed(0)
    poses = looking(torch.tensor([[0.0, 0, 3.0], [0.1, 0, 3.0]]), torch.tensor([[0.0, 0, 0], [0.1, 0, 0]]))
    points = 0.1 * torch.randn(1000, 3, generator=generator)
    assert content_distance(poses, points) == pytest.approx(3.0, rel=0.02)
    behind = points + torch.tensor([0.0, 0.0, 50.0])
    assert content_distance(poses, torch.cat([points, behind])) == pytest.approx(3.0, rel=0.02)
    assert content_distance(poses, behind) is None


def test_parallel_or_outward_cameras_do_not_tell_a_distance():
    row = torch.tensor([[x, 0.0, 0.0] for x in (-0.4, -0.1, 0.1, 0.4)])
    assert content_distance(looking(row, row - torch.tensor([0.0, 0.0, 1.0]))) is None
    assert content_distance(ring(0.7, outward=True)) is None


def test_distance_of_many_points_is_that_of_some():
    poses = looking(torch.tensor([[0.0, 0, 3.0]]), torch.zeros(1, 3))
    points = 0.1 * torch.randn(45_000, 3, generator=torch.Generator().manual_seed(0))
    assert content_distance(poses, points) == pytest.approx(3.0, rel=0.01)


def test_unit_follows_a_captures_content_and_else_the_box():
    assert scene_unit(1.5 * BOX, None) == pytest.approx(1.0)  # Blender's
    assert scene_unit(3 * BOX, None) == pytest.approx(2.0)
    assert scene_unit(BOX, 0.9) == scene_unit(10 * BOX, 0.9) == pytest.approx(0.225)


@pytest.mark.parametrize("kind", [LensType.PERSPECTIVE, LensType.FISHEYE, LensType.EQUIRECTANGULAR])
def test_start_points_are_seen_by_three_cameras_and_spread_over_distances(kind):
    torch.manual_seed(0)
    poses, inner = ring(0.9, count=32), lenses(32, 300.0 if kind is LensType.PERSPECTIVE else 480.0, kind)
    positions, colors = frustum_points(3000, poses, inner, 0.9)
    assert colors is None
    assert positions.shape == (3000, 3)
    seen = sum(lens.project(in_camera_space(positions, c)).seen.int() for c, lens in zip(poses, inner))  # noqa: B905
    assert int(seen.min()) >= 3
    farthest = torch.linalg.vector_norm(positions, dim=-1)
    assert (farthest > 3.0).float().mean() > 0.1
    assert (farthest < 0.9).float().mean() > 0.1


@pytest.mark.parametrize("count", [1, 2])
def test_few_cameras_are_enough_for_start_points(count):
    torch.manual_seed(0)
    apart = torch.tensor([[100.0 * i, 0.0, 0.0] for i in range(count)])  # they see nothing in common
    poses = looking(apart, apart - torch.tensor([0.0, 0.0, 1.0]))
    positions, _ = frustum_points(50, poses, lenses(count), 1.0)
    assert positions.shape == (50, 3)


KINDS = [LensType.PERSPECTIVE, LensType.FISHEYE, LensType.EQUIRECTANGULAR, LensType.ORTHOPHOTO, LensType.VR180_L]


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_are_filled_at_the_distance_of_the_nearest_point(kind):
    """Points on the left of a sphere about a camera (for parallel rays, of a plane): the right is filled alike."""
    torch.manual_seed(0)
    poses, lens = looking(torch.tensor([[0.5, 0.0, 2.0]]), torch.tensor([[0.5, 0.0, 0.0]])), lenses(1, 480.0, kind)[0]
    origins, directions, _ = lens.rays(torch.rand(4000).double() * 135, torch.rand(4000).double() * 480)
    local = 3.0 * directions + (0.0 if origins is None else origins)
    points = ((local - poses[0, :, 3].double()) @ poses[0, :, :3].double()).float()
    colors = torch.rand(4000, 3)
    positions, found = gap_points(10_000, StartPoints(points, colors), poses, [lens])
    assert found.shape == positions.shape
    assert torch.isin(found, colors).all()
    shown = lens.project(in_camera_space(positions.double(), poses[0]))
    assert bool(shown.seen.all())
    assert float(shown.column.min()) > 135 + 0.8 * 480 / 20
    cells = (135 - 480 / 20) * 480 / (480 / 64) ** 2
    assert len(positions) == pytest.approx(cells, rel=0.1)
    begins = lens.rays(shown.column, shown.row).origins
    away = in_camera_space(positions.double(), poses[0]) - (0.0 if begins is None else begins)
    distances = torch.linalg.vector_norm(away, dim=-1)
    assert float(distances.min()) > 3.0 - 1e-4
    # Parallel rays begin beside the nearest point's, by up to 135 / 480.
    assert float(distances.max()) < (3.02 if kind is LensType.ORTHOPHOTO else 3.0 + 1e-4)


def test_of_many_gap_points_some_are_chosen_and_of_none_none():
    torch.manual_seed(0)
    poses = looking(torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -9.0]]), torch.zeros(2, 3))
    start = StartPoints(torch.tensor([[0.0, 0.0, 0.0]]), None)
    positions, colors = gap_points(100, start, poses, lenses(2))
    assert positions.shape == (100, 3)
    assert colors is None
    nothing = gap_points(100, StartPoints(torch.tensor([[0.0, 0.0, 50.0]]), torch.ones(1, 3)), poses[:1], lenses(1))
    assert nothing.positions.shape == (0, 3)
    assert nothing.colors.shape == (0, 3)


def test_step_is_half_a_pixel_at_the_content_but_no_finer_than_wanted():
    assert resolved_step(lenses(8, 200.0), 1.0, 4.0, 0.0025) == pytest.approx(0.01)
    assert resolved_step(lenses(8, 200.0), 0.225, 0.9, 0.0025) == pytest.approx(0.01)
    assert resolved_step(lenses(8, 200.0), 1.0, None, 0.0025) == pytest.approx(0.01)
    assert resolved_step(lenses(8, 1e4), 0.225, 0.9, 0.0025) == 0.0025
    assert resolved_step([], 1.0, None, 0.0025) == 0.0025


@pytest.mark.parametrize(
    ("size", "wanted", "found"),
    [
        ((800, 800), None, 3),
        ((270, 480), None, 1),
        ((199, 4000), None, 0),
        ((4000, 3000), None, 4),
        ((800, 800), 0, 0),
        ((800, 800), 2, 2),
        ((800, 800), 9, 6),  # 12 pixels are left: SSIM needs 11
        ((30, 20), 1, 0),
    ],
)
def test_images_are_halved_as_often_as_they_can_be(size, wanted, found):
    small = Lens(LensType.PERSPECTIVE, 9.0, 9.0, 0.0, 0.0, *size)
    assert coarsest_downscales([small._replace(width=5000, height=5000), small], wanted) == found
    assert coarsest_downscales([], wanted) == 0
