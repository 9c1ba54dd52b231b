"""Initial positions and scales of the Gaussians of a new model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ns_support.lenses.lens import Lens
from raygauss_ns.gaussians.projection import in_camera_space

_NEAREST, _FARTHEST = 0.25, 8.0
_SEEN_BY = 3
_GAP_CELL, _GAP_RADIUS = 1 / 64, 1 / 20
_ENOUGH_FOR_GAPS, _CAMERAS_FOR_GAPS = 20_000, 100


class StartPoints(NamedTuple):
    """The initial positions and colours of Gaussians.

    Attributes:
        positions: [N, 3] (scene units).
        colors: [N, 3] in [0, 1], or None for grey.
    """

    positions: Tensor
    colors: Tensor | None

    def joined(self, more: StartPoints) -> StartPoints:
        """These points and more, grey unless both have colours."""
        colors = None if self.colors is None or more.colors is None else torch.cat([self.colors, more.colors])
        return StartPoints(torch.cat([self.positions, more.positions]), colors)


def neighbor_distances(positions: Tensor, unit: float) -> Tensor:
    """Root mean square distance to the three nearest neighbours: the initial scale of a Gaussian.

    Args:
        positions: [N, 3].
        unit: scale of a point without a neighbour. 1e-5 of it is the minimum, for points that coincide.

    Returns:
        [N] > 0.
    """
    neighbors = min(4, len(positions))
    if neighbors < 2:
        return torch.full((len(positions),), float(unit))
    points = positions.detach().cpu().numpy()
    distances, _ = cKDTree(points).query(points, k=neighbors)
    squared = torch.from_numpy(distances[:, 1:]).square().mean(-1)
    return squared.sqrt().clamp_min(1e-5 * unit).to(positions.dtype)


def random_points(count: int, box: Tensor, extent: float = 1.0) -> StartPoints:
    """Uniform random positions.

    Args:
        count: number of positions.
        box: [2, 3] lower and upper corner.
        extent: fraction of each side of the box, about its centre, that is filled.
    """
    return StartPoints(box.mean(0) + (torch.rand(count, 3) - 0.5) * extent * (box[1] - box[0]), None)


def frustum_points(count: int, world_to_cameras: Tensor, lenses: Sequence[Lens], distance: float) -> StartPoints:
    """Random positions that the cameras see, with the same density in each image at all distances.

    They lie on rays through random pixels of random cameras, at distances whose logarithm is uniform from 1/4 to 8
    times the content's. A position is kept if at least three cameras see it (all of them, if there are fewer).

    Args:
        count: number of positions.
        world_to_cameras: [C, 3, 4]; cameras look along their -z axis.
        lenses: C lenses.
        distance: the content's distance from the cameras (scene units).
    """
    found: list[Tensor] = []
    missing, wanted = count, min(_SEEN_BY, len(lenses))
    while missing > 0:
        chosen = torch.randint(len(lenses), (max(4 * missing, 1024),))
        counts = torch.bincount(chosen, minlength=len(lenses)).tolist()
        drawn = zip(counts, world_to_cameras, lenses, strict=True)
        points = torch.cat([_along_rays(number, pose, lens, distance) for number, pose, lens in drawn])
        seen = torch.zeros(len(points), dtype=torch.long)
        for pose, lens in zip(world_to_cameras, lenses, strict=True):
            seen += lens.project(in_camera_space(points, pose)).seen
        kept = points[seen >= wanted]
        kept = kept[torch.randperm(len(kept))[:missing]]
        # A point is always seen by the camera that it was drawn for, so this ends even if no two cameras overlap.
        wanted = wanted if len(kept) > 0 else 0
        found.append(kept)
        missing -= len(kept)
    return StartPoints(torch.cat(found), None)


def _along_rays(count: int, world_to_camera: Tensor, lens: Lens, distance: float) -> Tensor:
    """Up to `count` points [N, 3] on rays through random pixels; pixels without a ray give none."""
    column, row = torch.rand(count).double() * lens.width, torch.rand(count).double() * lens.height
    origins, directions, exist = lens.rays(column, row)
    away = distance * _NEAREST * (_FARTHEST / _NEAREST) ** torch.rand(count, 1)
    local = directions * away + (0.0 if origins is None else origins)
    points = (local - world_to_camera[:, 3].double()) @ world_to_camera[:, :3].double()
    return (points if exist is None else points[exist]).float()


def gap_points(most: int, start: StartPoints, world_to_cameras: Tensor, lenses: Sequence[Lens]) -> StartPoints:
    """Positions in the parts of images that show no initial point: regions that few images see are rarely triangulated.

    An image is divided into square cells, 1/64 of its longer side wide, and a pixel is drawn from each. If no initial
    point is within 1/20 of that side, a position is added along the pixel's ray, as far from the camera as the initial
    point that is nearest in the image, with that point's colour. Images that show no initial point add nothing.

    Args:
        most: maximum number of positions; from more, a random subset is taken.
        start: N positions, and colours if there are any. Of more than 20,000 only a subset is used.
        world_to_cameras: [C, 3, 4]; cameras look along their -z axis.
        lenses: C >= 1 lenses. Of more than 100 only a subset is used.
    """
    # Subsets, because all points and cameras of a large scene would take minutes and find hardly more gaps.
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
    """Positions [M, 3] in the gaps of one image, and for each the index of the point [N, 3] nearest in the image."""
    pose = world_to_camera.double()
    local = in_camera_space(points.double(), pose)
    shown = lens.project(local)
    visible = shown.seen.nonzero()[:, 0]
    if len(visible) == 0:
        return points[:0], visible
    width, height = int(lens.width), int(lens.height)
    cell = _GAP_CELL * max(width, height)
    corners = torch.cartesian_prod(torch.arange(0, width, cell), torch.arange(0, height, cell)).double()
    # The last cell of a row may extend beyond the image's edge.
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
