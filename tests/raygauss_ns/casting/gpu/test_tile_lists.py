"""Lists of (tile, shell): whatever a sample is inside of is listed where the kernels look, and little else."""

import pytest
import torch

from raygauss_ns.casting import whitening_matrices

pytest.importorskip("triton")

EPS, SLAB_LENGTH = 0.02, 0.05


def pinhole(width, height, centre=(0.5, 0.5), zoom=1.5, roll=0.0):
    """Unit directions [H, W, 3] towards +z of a camera that is rolled, its principal point anywhere in the image."""
    x = ((torch.arange(width) + 0.5) / width - centre[0]) / zoom
    y = ((torch.arange(height) + 0.5) / height - centre[1]) / zoom
    y, x = torch.meshgrid(y, x, indexing="ij")
    turn = torch.tensor(roll)
    x, y = turn.cos() * x - turn.sin() * y, turn.sin() * x + turn.cos() * y
    return torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)], -1), dim=-1)


def turned(image, axis):
    """The image's directions, turned so that +z comes to lie on an axis."""
    z = torch.nn.functional.normalize(axis, dim=0)
    x = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), z), dim=0)
    return image @ torch.stack([x, torch.linalg.cross(z, x), z])


def build(scene, origin, image, nears=None, counts=None):
    """The records that the lists are of, and the lists."""
    from raygauss_ns.casting.gpu.bvh import gather_records
    from raygauss_ns.casting.gpu.tile_lists import build_gpu_lists

    whitenings = whitening_matrices(scene.scales, scene.quats)
    bvh = gather_records(scene.means, whitenings, scene.densities, scene.colors, EPS)
    directions = image.reshape(-1, 3)
    origins = torch.as_tensor(origin).expand(len(directions), 3) if torch.as_tensor(origin).dim() == 1 else origin
    nears = torch.zeros(len(directions)) if nears is None else nears
    counts = torch.full((len(directions),), 100, dtype=torch.int32) if counts is None else counts
    return bvh, build_gpu_lists(
        bvh.records, bvh.squared_cutoff, origins, directions, nears, counts, image.shape[1], SLAB_LENGTH
    )


def listed_pairs(lists, records, tiles):
    """[T, S, N]: how often a record is listed, and how often as its first."""
    shells = (len(lists.starts) - 1) // tiles
    number = torch.diff(lists.starts.long())
    place = torch.repeat_interleave(torch.arange(tiles * shells), number)
    assert len(place) == len(lists.entries)
    assert torch.equal(lists.entries[:, 1].long(), place % shells)
    record, is_first = lists.entries[:, 0].long() // 2, lists.entries[:, 0] % 2
    listed = torch.zeros(tiles * shells, records, dtype=torch.long)
    once = listed.clone()
    listed.index_put_((place, record), torch.ones_like(place), accumulate=True)
    once.index_put_((place, record), is_first.long(), accumulate=True)
    return listed.view(tiles, shells, records), once.view(tiles, shells, records)


CAMERAS = {
    "in front": ((0.1, 0.2, -3.0), {}),
    "rolled": ((0.1, 0.2, -3.0), {"roll": 2.0}),
    "off centre": ((0.1, 0.2, -3.0), {"centre": (0.2, 1.1)}),
    "inside": ((0.3, -0.1, 0.2), {}),
    "inside, wide": ((0.3, -0.1, 0.2), {"zoom": 0.3}),
    "far": ((30.0, -20.0, -100.0), {"zoom": 30.0}),
    "one column": ((0.1, 0.2, -3.0), {"width": 1}),
}


@pytest.mark.parametrize("camera", list(CAMERAS))
def test_nothing_is_dropped(camera, random_scene):
    """Every sample that is inside a support finds it, in its tile and shell; each is first once in a tile."""
    origin, options = CAMERAS[camera]
    scene = random_scene(63)
    scene.scales[::3, 0] *= 10  # needles
    scene.scales[1::3, 2] *= 0.05  # sheets
    scene.densities[::5] = 0.01  # absent
    width, height = options.get("width", 31), 23
    image = pinhole(width, height, **{key: value for key, value in options.items() if key != "width"})
    if camera == "far":
        image = turned(image, -torch.tensor(origin))
    bvh, lists = build(scene, torch.tensor(origin), image)
    columns, rows = -(-width // 8), -(-height // 4)
    listed, once = listed_pairs(lists, 63, columns * rows)
    assert listed.max() == 1
    assert torch.equal(once.sum(1), listed.amax(1))

    centre = torch.tensor(origin).double() - bvh.records[:, :3].double()
    whitenings = bvh.records[:, 3:12].double().view(-1, 3, 3)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    tile = (y // 4 * columns + x // 8).reshape(-1)
    start = torch.einsum("nij,nj->ni", whitenings, centre)
    along = torch.einsum("nij,rj->rni", whitenings, image.reshape(-1, 3).double())
    found = 0
    distance = torch.tensor(origin).norm()
    for t in torch.arange(max(0.0, distance - 5), distance + 5, 0.02):
        inside = ((start + t.double() * along) ** 2).sum(-1) < bvh.squared_cutoff
        shell = int(((t - lists.shells[0]) * lists.shells[1]).floor().clamp(0, listed.shape[1] - 1))
        assert not bool((inside & (listed[tile, shell] == 0)).any())
        found += int(inside.sum())
    assert found > 1000, "too little was seen"


def test_little_else_is_listed(random_scene):
    """Small Gaussians in front of a pinhole camera: no more tiles than their own and its neighbours."""
    scene = random_scene(100)
    scene = scene._replace(scales=torch.full((100, 3), 0.01))
    _, lists = build(scene, torch.tensor([0.0, 0.0, -4.0]), pinhole(64, 64, zoom=1.2))
    listed, _ = listed_pairs(lists, 100, 8 * 16)
    tiles, shells = listed.amax(1).sum(0), listed.amax(0).sum(0)
    assert tiles.double().mean() < 3
    assert shells.max() <= 3
    assert shells[tiles > 0].min() >= 1


def test_behind_the_camera_is_not_listed(random_scene):
    scene = random_scene(31)
    scene = scene._replace(means=scene.means - torch.tensor([0.0, 0.0, 20.0]))
    _, lists = build(scene, torch.zeros(3), pinhole(8, 8))
    assert len(lists.entries) == 0
    assert not lists.starts.any()


def test_more_entries_than_are_allowed(random_scene, monkeypatch):
    from raygauss_ns.casting.gpu import tile_lists as gpu_lists

    inputs = random_scene(31), torch.tensor([0.0, 0.0, -3.0]), pinhole(8, 8)
    _, lists = build(*inputs)
    monkeypatch.setattr(gpu_lists, "MAX_ENTRIES", len(lists.entries))
    assert build(*inputs)[1] is not None
    monkeypatch.setattr(gpu_lists, "MAX_ENTRIES", len(lists.entries) - 1)
    assert build(*inputs)[1] is None


def test_rays_that_cannot_be_served(random_scene):
    scene, image = random_scene(7), pinhole(8, 4)
    origin = torch.tensor([0.0, 0.0, -3.0])
    origins = origin.repeat(32, 1)
    origins[5, 1] += 1e-3
    assert build(scene, origin, image)[1] is not None
    assert build(scene, origins, image)[1] is None
    backwards = image.clone()
    backwards[2, 3] *= -1
    assert build(scene, origin, backwards)[1] is None
    nears = torch.zeros(32)
    nears[4] = -1.0
    assert build(scene, origin, image, nears)[1] is None
    counts = torch.full((32,), 10, dtype=torch.int32)
    counts[4] = 0
    assert build(scene, origin, image, nears, counts)[1] is not None
    not_a_number = image.clone()
    not_a_number[0, 0, 0] = torch.nan
    assert build(scene, origin, not_a_number)[1] is None
