"""Triangulation of points from images with known poses: initial points for scenes without SfM points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ns_support.lenses.features import Features, Matches
from ns_support.lenses.lens import Lens

_MIN_PARALLAX = 1.5
"""Angle between two rays below which their intersection is too uncertain (degrees)."""
_MAX_ERROR = 2.0
"""Maximum reprojection error in both images (pixels)."""

_OUTLIER_NEIGHBOR = 5
"""Outlier removal uses the distance to the 5th nearest neighbour, relative to the distance to the nearest camera."""
_OUTLIER_RATIO = 5.0
"""A point is an outlier if that is more than this times the median over all points."""


class Points(NamedTuple):
    """Points of a scene.

    Attributes:
        positions: [N, 3] (scene units).
        colors: [N, 3] uint8.
    """

    positions: Tensor
    colors: Tensor


def cameras_inside(centers: Tensor, box: Tensor) -> bool:
    """Whether most of C >= 0 cameras [C, 3] are inside a box [2, 3]: a capture, whose content may be anywhere."""
    if len(centers) == 0:
        return False
    inside = ((centers >= box[0].to(centers)) & (centers <= box[1].to(centers))).all(-1)
    return bool(inside.float().mean() > 0.5)


def triangulated_points(matches: Matches, camera_to_worlds: Tensor, lenses: Sequence[Lens]) -> Points:
    """Triangulate points from the rays of matching features in pairs of images with known poses.

    A match gives the midpoint of the shortest segment between its two rays, if this point lies in front of both
    cameras, the rays differ by 1.5 degrees or more, and the reprojection error is at most 2 pixels in both images.
    Works with all lenses, distorted ones included.

    Args:
        matches: features of C images.
        camera_to_worlds: [C, 3, 4]; cameras look along their -z axis.
        lenses: C lenses.

    Returns:
        The points, possibly none. A place that several pairs see appears several times. Outliers, which are far from
        other points relative to their distance from the cameras, are removed.
    """
    poses = camera_to_worlds.double().cpu()
    positions, colors = [torch.zeros(0, 3)], [torch.zeros(0, 3, dtype=torch.uint8)]
    for i, j, a, b in matches.pairs:
        points = midpoints(world_rays(matches.features[i], poses[i], a), world_rays(matches.features[j], poses[j], b))
        for camera, own in ((i, a), (j, b)):
            local = (points - poses[camera, :, 3]) @ poses[camera, :, :3]
            column, row, seen = lenses[camera].project(local)
            away = torch.linalg.vector_norm(
                torch.stack([column, row], -1) - matches.features[camera].pixels[own], dim=-1
            )
            points = torch.where((seen & (away < _MAX_ERROR))[:, None], points, torch.nan)
        kept = points.isfinite().all(-1)
        positions.append(points[kept].float())
        colors.append(matches.features[i].colors[a][kept])
    everything = Points(torch.cat(positions), torch.cat(colors))
    kept = _inliers(everything.positions, poses[:, :, 3].float())
    return Points(everything.positions[kept], everything.colors[kept])


def world_rays(features: Features, pose: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and directions [M, 3] of the rays of features in the world.

    Args:
        features: of an image.
        pose: [3, 4] of its camera.
        chosen: [M] indices.
    """
    directions = features.directions[chosen] @ pose[:, :3].T
    if features.origins is None:
        return pose[:, 3].expand_as(directions), directions
    return features.origins[chosen] @ pose[:, :3].T + pose[:, 3], directions


def _inliers(points: Tensor, centers: Tensor) -> Tensor:
    """[N] bool, which points have others nearby; false matches that pass all tests are scattered."""
    if len(points) <= _OUTLIER_NEIGHBOR:
        return torch.zeros(len(points), dtype=torch.bool)
    places = points.numpy()
    to_others = cKDTree(places).query(places, k=_OUTLIER_NEIGHBOR + 1)[0][:, -1]
    to_cameras = cKDTree(centers.numpy()).query(places)[0]
    isolation = torch.from_numpy(to_others / np.maximum(to_cameras, 1e-12))
    return isolation <= _OUTLIER_RATIO * isolation.median()


def midpoints(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """[M, 3] midpoints of the shortest segments between M pairs of rays; NaN if unreliable.

    Args:
        first: origins and directions [M, 3] of a ray of each pair.
        second: those of the other.
    """
    (o, d), (p, e) = first, second
    cosine = (d * e).sum(-1)
    apart, sine2 = p - o, (1 - cosine * cosine).clamp_min(1e-12)
    s = ((apart * d).sum(-1) - cosine * (apart * e).sum(-1)) / sine2
    t = (cosine * (apart * d).sum(-1) - (apart * e).sum(-1)) / sine2
    points = 0.5 * (o + s[:, None] * d + p + t[:, None] * e)
    valid = (s > 0) & (t > 0) & (cosine < np.cos(np.radians(_MIN_PARALLAX)))
    return torch.where(valid[:, None], points, torch.nan)
