"""Features that match between images: what triangulation and bundle adjustment start from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
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


class Features(NamedTuple):
    """K SIFT features of an image.

    Attributes:
        origins: [K, 3] where their rays start, in the camera's frame; None if all start at the camera's centre.
        directions: [K, 3] of their rays, in the camera's frame, of unit length; NaN where a pixel has no ray.
        pixels: [K, 2] column and row; the centre of the first pixel is at 0.5.
        descriptors: [K, 128].
        colors: [K, 3] uint8.
    """

    origins: Tensor | None
    directions: Tensor
    pixels: Tensor
    descriptors: npt.NDArray[np.float32]
    colors: Tensor


class Pair(NamedTuple):
    """Features that match between two images: the images' numbers, and [M] indices of features in each."""

    first: int
    second: int
    in_first: Tensor
    in_second: Tensor


class Matches(NamedTuple):
    """The features of C images, and the pairs of images that were compared."""

    features: list[Features]
    pairs: list[Pair]


def matched_features(
    images: Iterable[tuple[Tensor, Tensor | None]],
    camera_to_worlds: Tensor,
    lenses: Sequence[Lens],
    follow: Callable[[Iterable[Any], str, int], Iterable[Any]] = lambda things, what, total: things,
) -> Matches:
    """Find features, and match them between images whose cameras are near each other.

    Features are OpenCV's SIFT, matched by Lowe's ratio test in both directions.

    Args:
        images: C images [H, W, 3 or 4] uint8, each with a mask [H, W, 1] bool of where features may lie, or None for
            everywhere. Only one image is in memory at a time.
        camera_to_worlds: [C, 3, 4]; cameras look along their -z axis.
        lenses: C lenses.
        follow: wraps an iterable, given a description and its length, and may report progress.
    """
    found = [
        _features(image[..., :3].cpu().numpy(), lens, mask)
        for (image, mask), lens in zip(follow(images, "Finding features", len(lenses)), lenses, strict=True)
    ]
    near = neighbors(camera_to_worlds.double().cpu())
    pairs = [Pair(i, j, *_matches(found[i], found[j])) for i, j in follow(near, "Matching images", len(near))]
    return Matches(found, pairs)


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


def _features(image: npt.NDArray[np.uint8], lens: Lens, mask: Tensor | None) -> Features:
    # Imported late: OpenCV takes half a second to import, and scenes with SfM points do not need it.
    import cv2

    gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    allowed = np.ones_like(gray) if mask is None else mask.cpu().numpy()[..., 0].astype(gray.dtype)
    keypoints, descriptors = cv2.SIFT.create(
        _FEATURES, contrastThreshold=0.01, enable_precise_upscale=True
    ).detectAndCompute(gray, allowed)
    places = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float64).reshape(-1, 2)
    # In OpenCV the centre of the first pixel is at 0.
    pixels = torch.from_numpy(places) + 0.5
    origins, directions, exist = lens.rays(pixels[:, 0], pixels[:, 1])
    if exist is not None:
        directions = torch.where(exist[..., None], directions, torch.nan)
    height, width = gray.shape
    row = np.clip(places[:, 1].round().astype(int), 0, height - 1)
    column = np.clip(places[:, 0].round().astype(int), 0, width - 1)
    described = np.zeros((0, 128), np.float32) if descriptors is None else descriptors
    # Hellinger kernel (Arandjelovic and Zisserman 2012).
    described = np.sqrt(described / np.maximum(described.sum(-1, keepdims=True), 1e-7))
    return Features(origins, directions, pixels, described, torch.from_numpy(image[row, column]))


def _matches(first: Features, second: Features) -> tuple[Tensor, Tensor]:
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
