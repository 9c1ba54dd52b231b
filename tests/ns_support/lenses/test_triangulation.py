import math

import pytest
import torch

from ns_support.lenses.features import matched_features, neighbors
from ns_support.lenses.lens import LensType, make_lens
from ns_support.lenses.triangulation import cameras_inside, triangulated_points

WIDTH, HEIGHT, FOCAL = 160, 120, 150.0
DISTORTION = (0.1, -0.05, 0.0, 0.0, 0.002, -0.001)


def poses_before_the_plane(count=4):
    """[C, 3, 4] cameras in a row at z = 2 that look at the middle of the plane z = 0."""
    poses = []
    for i in range(count):
        center = torch.tensor([-0.4 + 0.25 * i, 0.1 * i, 2.0], dtype=torch.float64)
        back = center / center.norm()
        right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).double(), back), dim=0)
        poses.append(torch.stack([right, torch.linalg.cross(back, right), back, center], -1))
    return torch.stack(poses)


def photographs(poses, lens):
    """[H, W, 3] uint8 each: a plane of random blobs at z = 0, through the lens."""
    generator = torch.Generator().manual_seed(0)
    texture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 40, 40, generator=generator), size=(400, 400), mode="bicubic"
    ).clamp(0, 1)
    row, column = torch.arange(HEIGHT).double()[:, None] + 0.5, torch.arange(WIDTH).double() + 0.5
    images = []
    for pose in poses:
        _, directions, _ = lens.rays(column, row)
        world = directions @ pose[:, :3].T
        hit = pose[:, 3] - world * (pose[2, 3] / world[..., 2:])
        seen = torch.nn.functional.grid_sample(texture, hit[None, ..., :2].float() / 2.0, align_corners=False)
        images.append((seen[0].permute(1, 2, 0) * 255).round().to(torch.uint8))
    return images


def triangulated(images, poses, lenses):
    return triangulated_points(matched_features(images, poses, lenses), poses, lenses)


@pytest.mark.parametrize(
    ("kind", "coefficients"),
    [(LensType.PERSPECTIVE, ()), (LensType.PERSPECTIVE, DISTORTION), (LensType.FISHEYE, (0.05, 0, 0, 0, 0, 0))],
    ids=["pinhole", "distorted", "fisheye"],
)
def test_points_lie_on_what_was_photographed_and_have_its_colours(kind, coefficients):
    lens = make_lens(kind, (FOCAL, FOCAL), (WIDTH / 2, HEIGHT / 2), (WIDTH, HEIGHT), coefficients)
    poses = poses_before_the_plane()
    images = photographs(poses, lens)
    found = triangulated(((image, None) for image in images), poses.float(), [lens] * len(poses))
    assert len(found.positions) > 300
    assert found.positions[:, 2].abs().quantile(0.95) < 0.02  # a pixel is 0.013 wide there
    assert found.positions[:, :2].abs().max() < 2.0
    local = (found.positions.double() - poses[0, :, 3]) @ poses[0, :, :3]
    column, row, seen = lens.project(local)
    there = images[0][row[seen].long(), column[seen].long()].float()
    assert (there - found.colors[seen].float()).abs().mean() < 20


def test_a_mask_keeps_features_away():
    lens = make_lens(LensType.PERSPECTIVE, (FOCAL, FOCAL), (WIDTH / 2, HEIGHT / 2), (WIDTH, HEIGHT))
    poses = poses_before_the_plane()
    images, none = photographs(poses, lens), torch.zeros(HEIGHT, WIDTH, 1, dtype=torch.bool)
    assert len(triangulated([(image, none) for image in images], poses, [lens] * 4).positions) == 0


def test_images_without_features_give_no_points():
    lens = make_lens(LensType.PERSPECTIVE, (FOCAL, FOCAL), (WIDTH / 2, HEIGHT / 2), (WIDTH, HEIGHT))
    gray = torch.full((HEIGHT, WIDTH, 4), 128, dtype=torch.uint8)
    found = triangulated([(gray, None)] * 4, poses_before_the_plane(), [lens] * 4)
    assert found.positions.shape == found.colors.shape == (0, 3)


def test_neighbours_are_near_and_look_the_same_way():
    def turned(angle, x):
        c, s = math.cos(angle), math.sin(angle)
        return torch.tensor([[c, 0, s, x], [0, 1, 0, 0], [-s, 0, c, 0]], dtype=torch.float64)

    poses = torch.stack([turned(0, 0.0), turned(0.3, 0.5), turned(math.pi, 0.1), turned(0, 0.0)])
    assert neighbors(poses) == [(0, 1), (1, 3)]  # the third looks away; the fourth is where the first is


def test_cameras_are_inside_if_most_are():
    box = torch.tensor([[-1.0] * 3, [1.0] * 3])
    assert cameras_inside(torch.tensor([[0.0, 0, 0], [0.9, 0.9, 0.9], [5.0, 0, 0]]), box)
    assert not cameras_inside(torch.tensor([[0.0, 0, 0], [5.0, 0, 0]]), box)
    assert not cameras_inside(torch.zeros(0, 3), box)
