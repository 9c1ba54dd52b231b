"""Triangulation of points from images with known poses: initial points for scenes without SfM points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ns_support.lenses.lens import Lens

_FEATURES = 4000
"""Number of SIFT features of an image; the strongest are kept."""
_NEIGHBORS = 10
"""Number of cameras that each camera is matched with: the nearest that look in about the same direction."""
_MAX_TURN = 60.0
"""Angle between optical axes above which features are not compared (degrees)."""
_RATIO = 0.8
"""A match is accepted if it is closer than this times the second best (Lowe 2004)."""
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


class _Features(NamedTuple):
    """SIFT features of an image: world rays [K, 3] each, pixels [K, 2], descriptors [K, 128], colours [K, 3]."""

    origins: Tensor
    directions: Tensor
    pixels: Tensor
    descriptors: Any
    colors: Tensor


def cameras_inside(centers: Tensor, box: Tensor) -> bool:
    """Whether most of C >= 0 cameras [C, 3] are inside a box [2, 3]: a capture, whose content may be anywhere."""
    if len(centers) == 0:
        return False
    inside = ((centers >= box[0].to(centers)) & (centers <= box[1].to(centers))).all(-1)
    return bool(inside.float().mean() > 0.5)


def triangulated_points(
    images: Iterable[tuple[Tensor, Tensor | None]],
    camera_to_worlds: Tensor,
    lenses: Sequence[Lens],
    follow: Callable[[Iterable[Any], str, int], Iterable[Any]] = lambda things, what, total: things,
) -> Points:
    """Triangulate points from the rays of matching SIFT features in pairs of images with known poses.

    Features are OpenCV's, matched by Lowe's ratio test in both directions. A match gives the midpoint of the shortest
    segment between its two rays, if this point lies in front of both cameras, the rays differ by 1.5 degrees or more,
    and the reprojection error is at most 2 pixels in both images. Works with all lenses, distorted ones included.

    Args:
        images: C images [H, W, 3 or 4] uint8, each with a mask [H, W, 1] bool of where features may lie, or None for
            everywhere. Only one image is in memory at a time.
        camera_to_worlds: [C, 3, 4]; cameras look along their -z axis.
        lenses: C lenses.
        follow: wraps an iterable, given a description and its length, and may report progress.

    Returns:
        The points, possibly none. A place that several pairs see appears several times. Outliers, which are far from
        other points relative to their distance from the cameras, are removed.
    """
    poses = camera_to_worlds.double().cpu()
    found = [
        _features(image[..., :3].cpu().numpy(), pose, lens, mask)
        for (image, mask), pose, lens in zip(follow(images, "Finding features", len(poses)), poses, lenses, strict=True)
    ]
    positions, colors = [torch.zeros(0, 3)], [torch.zeros(0, 3, dtype=torch.uint8)]
    pairs = neighbors(poses)
    for i, j in follow(pairs, "Matching images", len(pairs)):
        a, b = _matches(found[i], found[j])
        points = _midpoints(found[i], found[j], a, b)
        for camera, features, own in ((i, found[i], a), (j, found[j], b)):
            local = (points - poses[camera, :, 3]) @ poses[camera, :, :3]
            column, row, seen = lenses[camera].project(local)
            away = torch.linalg.vector_norm(torch.stack([column, row], -1) - features.pixels[own], dim=-1)
            points = torch.where((seen & (away < _MAX_ERROR))[:, None], points, torch.nan)
        kept = points.isfinite().all(-1)
        positions.append(points[kept].float())
        colors.append(found[i].colors[a][kept])
    everything = Points(torch.cat(positions), torch.cat(colors))
    kept = _inliers(everything.positions, poses[:, :, 3].float())
    return Points(everything.positions[kept], everything.colors[kept])


def _inliers(points: Tensor, centers: Tensor) -> Tensor:
    """[N] bool, which points have others nearby; false matches that pass all tests are scattered."""
    if len(points) <= _OUTLIER_NEIGHBOR:
        return torch.zeros(len(points), dtype=torch.bool)
    places = points.numpy()
    to_others = cKDTree(places).query(places, k=_OUTLIER_NEIGHBOR + 1)[0][:, -1]
    to_cameras = cKDTree(centers.numpy()).query(places)[0]
    isolation = torch.from_numpy(to_others / np.maximum(to_cameras, 1e-12))
    return isolation <= _OUTLIER_RATIO * isolation.median()


def neighbors(camera_to_worlds: Tensor) -> list[tuple[int, int]]:
    """Pairs (i < j) of cameras to match: for each of C [C, 3, 4] the nearest ones with about the same direction."""
    centers, axes = camera_to_worlds[:, :, 3], camera_to_worlds[:, :, 2]
    distances = torch.cdist(centers, centers)
    turned = (axes @ axes.T).clamp(-1, 1).arccos() > np.radians(_MAX_TURN)
    distances[turned | (distances == 0)] = torch.inf
    pairs: set[tuple[int, int]] = set()
    for i, row in enumerate(distances):
        nearest = torch.argsort(row)[:_NEIGHBORS].tolist()
        pairs |= {(min(i, j), max(i, j)) for j in nearest if row[j] < torch.inf}
    return sorted(pairs)


def _features(image: npt.NDArray[np.uint8], pose: Tensor, lens: Lens, mask: Tensor | None) -> _Features:
    # Imported late: OpenCV takes half a second to import, and scenes with SfM points do not need it.
    import cv2

    gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    allowed = np.ones_like(gray) if mask is None else mask.cpu().numpy()[..., 0].astype(gray.dtype)
    keypoints, descriptors = cv2.SIFT.create(_FEATURES, contrastThreshold=0.01).detectAndCompute(gray, allowed)
    places = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float64).reshape(-1, 2)
    # In OpenCV the centre of the first pixel is at 0.
    pixels = torch.from_numpy(places) + 0.5
    origins, directions, exist = lens.rays(pixels[:, 0], pixels[:, 1])
    rotation, center = pose[:, :3], pose[:, 3]
    world = directions @ rotation.T
    if exist is not None:
        world[~exist] = torch.nan
    starts = center.expand_as(world) if origins is None else origins @ rotation.T + center
    height, width = gray.shape
    row = np.clip(places[:, 1].round().astype(int), 0, height - 1)
    column = np.clip(places[:, 0].round().astype(int), 0, width - 1)
    described = np.zeros((0, 128), np.float32) if descriptors is None else descriptors
    # Hellinger kernel (Arandjelovic and Zisserman 2012).
    described = np.sqrt(described / np.maximum(described.sum(-1, keepdims=True), 1e-7))
    return _Features(starts, world, pixels, described, torch.from_numpy(image[row, column]))


def _matches(first: _Features, second: _Features) -> tuple[Tensor, Tensor]:
    """Indices of matching features in both images."""
    if min(len(first.pixels), len(second.pixels)) < 2:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    similarity = torch.from_numpy(first.descriptors @ second.descriptors.T)
    top = similarity.topk(2, dim=1)
    (best, runner_up), chosen, back = top.values.unbind(-1), top.indices[:, 0], similarity.argmax(0)
    # Descriptors have unit length: squared distances are 2 - 2 times the similarity.
    clear = (1 - best).clamp_min(0) < _RATIO**2 * (1 - runner_up)
    rows = torch.nonzero(clear & (back[chosen] == torch.arange(len(chosen))))[:, 0]
    return rows, chosen[rows]


def _midpoints(first: _Features, second: _Features, a: Tensor, b: Tensor) -> Tensor:
    """[M, 3] midpoints of the shortest segments between the two rays of each match; NaN if unreliable."""
    o, p, d, e = first.origins[a], second.origins[b], first.directions[a], second.directions[b]
    cosine = (d * e).sum(-1)
    apart, sine2 = p - o, (1 - cosine * cosine).clamp_min(1e-12)
    s = ((apart * d).sum(-1) - cosine * (apart * e).sum(-1)) / sine2
    t = (cosine * (apart * d).sum(-1) - (apart * e).sum(-1)) / sine2
    points = 0.5 * (o + s[:, None] * d + p + t[:, None] * e)
    valid = (s > 0) & (t > 0) & (cosine < np.cos(np.radians(_MIN_PARALLAX)))
    return torch.where(valid[:, None], points, torch.nan)
