"""How large a scene's content is and where it may lie, told from the cameras that were pointed at it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ns_support.lenses import Lens
from raygauss_ns.gaussians import StartPoints
from raygauss_ns.projection import in_camera_space

BLENDER_BOX = 3.0
"""Longest side of the scene box in nerfstudio's Blender parser, whose scenes are in the papers' own units."""
BLENDER_DISTANCE = 4.0
"""Distance of that data set's cameras from what they look at, in the same units."""

_NEAREST, _FARTHEST = 0.25, 8.0
_SEEN_BY = 3
_MIN_CONVERGENCE = 1e-3
_ENOUGH_POINTS = 10_000
_GAP_CELL, _GAP_RADIUS = 1 / 64, 1 / 20
_ENOUGH_FOR_GAPS, _CAMERAS_FOR_GAPS = 20_000, 100


def content_distance(world_to_cameras: Tensor, points: Tensor | None = None) -> float | None:
    """Distance from a camera to what it looks at, the median over the cameras (scene units).

    With SfM points: the median distance of the points before a camera. Without: the distance to the focus, the point
    nearest to all optical axes, p = argmin sum_i |(I - a_i a_i^T)(p - c_i)|^2.

    Args:
        world_to_cameras: [C, 3, 4]; cameras look along their -z axis.
        points: [N, 3] SfM points, or None.

    Returns:
        None where the cameras do not tell: their axes are parallel, or do not meet before them.
    """
    poses = world_to_cameras.double()
    if points is not None and len(points) > 0:
        # A median needs no more of them, and C times N would not fit into memory for a large scene.
        some = points[:: max(len(points) // _ENOUGH_POINTS, 1)].to(poses)
        local = (in_camera_space(some, pose) for pose in poses)
        before = [torch.linalg.vector_norm(p[p[:, 2] < 0], dim=-1) for p in local]
        medians = [distances.median() for distances in before if len(distances) > 0]
        return float(torch.stack(medians).median()) if medians else None
    axes = -poses[:, 2, :3]
    centers = camera_centers(poses)
    across = torch.eye(3).to(poses) - axes[:, :, None] * axes[:, None, :]
    if torch.linalg.eigvalsh(across.mean(0))[0] < _MIN_CONVERGENCE:
        return None
    focus = torch.linalg.solve(across.sum(0), (across @ centers[..., None]).sum(0)[:, 0])
    ahead = ((focus - centers) * axes).sum(-1)
    spread = torch.linalg.vector_norm(centers - centers.mean(0), dim=-1).median()
    distance = torch.linalg.vector_norm(focus - centers, dim=-1).median()
    return float(distance) if ahead.median() > 0.25 * spread else None


def scene_unit(box: Tensor, distance: float | None) -> float:
    """u, the length that counts as 1 (scene units), such that the content is as large as the papers' scenes.

    Cameras outside of the scene box look at what it holds: u = longest side / 3, which is 1 on Blender scenes. Cameras
    inside of it are a capture that nerfstudio has scaled to fit the *cameras* into the box, with the content anywhere:
    u = content distance / 4, the distance of Blender's cameras being 4. Where that can't be told, the box decides.

    Args:
        box: [2, 3] lower and upper corner of the scene box.
        distance: a capture's `content_distance` (scene units); None: not a capture, or not known.
    """
    return float((box[1] - box[0]).max()) / BLENDER_BOX if distance is None else distance / BLENDER_DISTANCE


def camera_centers(world_to_cameras: Tensor) -> Tensor:
    """[C, 3] where cameras [C, 3, 4] are."""
    return -torch.einsum("cji,cj->ci", world_to_cameras[:, :, :3], world_to_cameras[:, :, 3])


def frustum_points(count: int, world_to_cameras: Tensor, lenses: Sequence[Lens], distance: float) -> StartPoints:
    """Random positions that the cameras see, as dense in each image near as far.

    Along rays through random pixels of random cameras, at distances whose logarithm is uniform from 1/4 to 8 times the
    content's; kept where at least three cameras see them (fewer where there are fewer).

    Args:
        count: how many.
        world_to_cameras: [C, 3, 4]; cameras look along their -z axis.
        lenses: C lenses.
        distance: the content's distance from the cameras (scene units).
    """
    found: list[Tensor] = []
    missing, wanted = count, min(_SEEN_BY, len(lenses))
    while missing > 0:
        chosen = torch.randint(len(lenses), (max(4 * missing, 1024),))
        shares = torch.bincount(chosen, minlength=len(lenses)).tolist()
        drawn = zip(shares, world_to_cameras, lenses, strict=True)
        points = torch.cat([_along_rays(share, pose, lens, distance) for share, pose, lens in drawn])
        seen = torch.zeros(len(points), dtype=torch.long)
        for pose, lens in zip(world_to_cameras, lenses, strict=True):
            seen += lens.project(in_camera_space(points, pose)).seen
        kept = points[seen >= wanted]
        kept = kept[torch.randperm(len(kept))[:missing]]
        # The camera that a point was drawn for sees it: cameras that share nothing do not keep this from ending.
        wanted = wanted if len(kept) > 0 else 0
        found.append(kept)
        missing -= len(kept)
    return StartPoints(torch.cat(found), None)


def _along_rays(count: int, world_to_camera: Tensor, lens: Lens, distance: float) -> Tensor:
    """Up to `count` points [N, 3] on rays through random pixels; fewer where pixels without a ray were drawn."""
    column, row = torch.rand(count).double() * lens.width, torch.rand(count).double() * lens.height
    origins, directions, exist = lens.rays(column, row)
    away = distance * _NEAREST * (_FARTHEST / _NEAREST) ** torch.rand(count, 1)
    local = directions * away + (0.0 if origins is None else origins)
    points = (local - world_to_camera[:, 3].double()) @ world_to_camera[:, :3].double()
    return (points if exist is None else points[exist]).float()


def gap_points(most: int, start: StartPoints, world_to_cameras: Tensor, lenses: Sequence[Lens]) -> StartPoints:
    """Positions in the parts of images where no start point shows: what few photographs see is rarely triangulated.

    An image is divided into square cells, 1/64 of its longer side wide, and a pixel drawn from each. Where no start
    point is within 1/20 of that side, a position is added along the pixel's ray, as far from the camera as the start
    point that is nearest in the image, with that point's colour. Images that show no start point add nothing.

    Args:
        most: how many, at most; of more, a random choice.
        start: N positions, and colours if there are any. Of more than 20,000 only some are looked at.
        world_to_cameras: [C, 3, 4]; cameras look along their -z axis.
        lenses: C >= 1 lenses. Of more than 100 only some are looked through.
    """
    # More of them show hardly more gaps, and a large scene's would take minutes.
    some = torch.arange(0, len(start.positions), max(len(start.positions) // _ENOUGH_FOR_GAPS, 1))
    every = -(-len(lenses) // _CAMERAS_FOR_GAPS)
    found, sources = [start.positions[:0]], [some[:0]]
    for pose, lens in zip(world_to_cameras[::every], lenses[::every], strict=True):
        positions, nearest = _in_gaps(start.positions[some], pose, lens)
        found.append(positions)
        sources.append(some[nearest])
    kept = torch.randperm(sum(map(len, sources)))[:most]
    source = torch.cat(sources)[kept]
    return StartPoints(torch.cat(found)[kept], None if start.colors is None else start.colors[source])


def _in_gaps(points: Tensor, world_to_camera: Tensor, lens: Lens) -> tuple[Tensor, Tensor]:
    """Positions [M, 3] in the gaps of one image, and for each of them which of the points [N, 3] is nearest there."""
    pose = world_to_camera.double()
    local = in_camera_space(points.double(), pose)
    shown = lens.project(local)
    visible = shown.seen.nonzero()[:, 0]
    if len(visible) == 0:
        return points[:0], visible
    width, height = int(lens.width), int(lens.height)
    cell = _GAP_CELL * max(width, height)
    corners = torch.cartesian_prod(torch.arange(0, width, cell), torch.arange(0, height, cell)).double()
    # The last cell of a row may reach over the image's edge.
    pixels = (corners + cell * torch.rand_like(corners)).minimum(corners.new_tensor([width - 1e-3, height - 1e-3]))
    tree = cKDTree(torch.stack([shown.column, shown.row], dim=-1)[visible].numpy())
    apart, nearest = map(torch.from_numpy, tree.query(pixels.numpy()))
    origins, directions, exist = lens.rays(*pixels.unbind(-1))
    empty = apart > _GAP_RADIUS * max(width, height)
    empty = empty if exist is None else empty & exist
    source = visible[nearest[empty]]
    before = torch.zeros(3).double() if origins is None else origins[empty]
    away = torch.linalg.vector_norm(local[source] - before, dim=-1, keepdim=True)
    positions = (before + away * directions[empty] - pose[:, 3]) @ pose[:, :3]
    return positions.to(points), source


def resolved_step(lenses: Sequence[Lens], unit: float, distance: float | None, least: float) -> float:
    """A distance between samples (u) that suits Gaussians kept above half a pixel's size in these images.

    A uniform sum with spacing h over a Gaussian of scale s differs from the integral by 2 exp(-2 pi^2 s^2 / h^2) of it,
    1e-8 at h = s, and the smallest s of a training (`smallest_resolved_scale`) is half a pixel at the Gaussian. So
    h is half a pixel's size at the content's distance before the lens, the median over the lenses.

    Args:
        lenses: of the training images.
        unit: u (scene units).
        distance: the content's distance from the cameras (scene units); None: as in the papers' scenes, 4 u.
        least: no step below this (u); what it is without any camera.
    """
    if not lenses:
        return least
    content = torch.tensor([[0.0, 0.0, -(BLENDER_DISTANCE * unit if distance is None else distance)]])
    sizes = torch.cat([lens.pixel_size(content) for lens in lenses])
    return max(0.5 * float(sizes.median()) / unit, least)
