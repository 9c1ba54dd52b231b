"""Where pose refinement begins: poses that fit the features which match between the training photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from ns_support.corrections.poses import PoseRefinement, PoseRefinementConfig
from ns_support.lenses.bundle_adjustment import adjusted_poses
from ns_support.lenses.features import Matches, matched_features
from ns_support.rays import camera_extent, camera_lenses
from ns_support.terminal import say

_EVIDENCE = 3.0
"""Poses that fit less than this much better, by an F-test's statistic, are right already: exact ones reach 1.4."""
_FEWEST = 0.5
"""Fraction of the cameras that must have enough features."""
FITTED_POSES = "fitted_poses"
"""Name of the fitted poses [N, 3, 4] in the metadata that the datamanager passes to the model."""

LOOKING = "The scene's poses are to be refined: looking for features"
"""Why images are read before the training."""

Follow = Callable[[Iterable[Any], str, int], Iterable[Any]]


def photograph_matches(dataset: InputDataset, follow: Follow) -> Matches:
    """Features of a dataset's images that match, outside their masks.

    Args:
        dataset: the training images.
        follow: wraps an iterable, given a description and its length, and may report progress.
    """
    data = (dataset.get_data(i, image_type="uint8") for i in range(len(dataset)))
    images = ((item["image"], item.get("mask")) for item in data)
    return matched_features(images, dataset.cameras.camera_to_worlds, camera_lenses(dataset.cameras), follow)


def fitted_poses(cameras: Cameras, matches: Matches) -> Tensor | None:
    """Poses of the training cameras that fit their photographs' features, if those given don't; says which.

    What all cameras have in common is left as it is given, so that held-out cameras stay in place.

    Args:
        cameras: N cameras with the poses as given.
        matches: features of their photographs.

    Returns:
        [N, 3, 4]; None if too few features match, or if the poses fit as they are.
    """
    found = adjusted_poses(matches, cameras.camera_to_worlds, camera_lenses(cameras), camera_extent(cameras))
    share = float(found.adjusted.double().mean())
    if share < _FEWEST:
        say(f"Poses: too few features match between photographs to fit them ({100 * share:.0f} % have enough).")
        return None
    before, after = found.errors
    if found.evidence < _EVIDENCE:
        say(f"Poses: {found.points:,} points that photographs share fit them as they are, to {before:.2f} pixels.")
        return None
    refinement = PoseRefinement(PoseRefinementConfig(mode="SO3xR3"), cameras)
    refinement.start_at(found.poses)
    fitted = refinement.apply_to_cameras()
    given = refinement.poses
    turn = (given[:, :, :3].mT @ fitted[:, :, :3]).diagonal(dim1=1, dim2=2).sum(1)
    degrees = math.degrees(float(((turn - 1) / 2).clamp(-1, 1).arccos().mean()))
    say(
        f"Poses: fitted to {found.points:,} points that photographs share, {before:.2f} pixels off before and "
        f"{after:.2f} after; turned by {degrees:.2f} degrees on average."
    )
    return fitted
