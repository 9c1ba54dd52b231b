"""Records the training data in a checkpoint: a run is resumed only with the same images at the same poses.

nerfstudio normalises a scene's cameras at each start. If images are added or removed, all other cameras move, and the
model of a checkpoint would no longer be aligned with its images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import DataManager
from torch import Tensor

from ns_support.terminal import warn

KEY = "trained_on"
"""Its key in a checkpoint."""
NORMALIZATION = "dataparser_transforms.json"
"""nerfstudio's name of a file in the run's folder."""
_SAME = 1e-4
"""Relative difference below which two numbers count as equal: files contain six digits."""
_NAMED = 3
"""Maximum number of images that a message names."""


def trained_on(datamanager: DataManager) -> dict[str, Any]:
    """The identifying properties of a run's training data.

    Returns:
        "names", the N images' file names; "transform" [3, 4] and "scale", with which nerfstudio normalised the scene;
        "poses" [N, 3, 4], camera to world; "lenses" [N, K], independent of the images' resolution.
    """
    outputs = datamanager.train_dataparser_outputs
    cameras = datamanager.train_dataset.cameras
    return {
        "names": [path.name for path in datamanager.train_dataset.image_filenames],
        "transform": outputs.dataparser_transform.detach().double().cpu(),
        "scale": float(outputs.dataparser_scale),
        "poses": cameras.camera_to_worlds.detach().double().cpu(),
        "lenses": _lenses(cameras),
    }


def normalization_beside(checkpoint: Path) -> dict[str, Any] | None:
    """For checkpoints without `trained_on`: the part of it that nerfstudio writes to the run's folder, or None."""
    path = checkpoint.parent.parent / NORMALIZATION
    try:
        content = json.loads(path.read_text("utf8"))
        transform, scale = torch.tensor(content["transform"], dtype=torch.float64), float(content["scale"])
        if transform.shape != (3, 4) or not bool(transform.isfinite().all()) or not 0 < scale < math.inf:
            raise ValueError(f"no transform and scale: {content}")
        return {"transform": transform, "scale": scale}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RuntimeError):
        warn(f"{path} is damaged: whether the data are those that the run was trained on is not known.")
        return None


def moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """A description of the difference between a run's training data and the present data; None if there is none.

    Args:
        before: the result of `trained_on` in training, or a part of it.
        now: its present result.
    """
    names, poses = before.get("names"), before.get("poses")
    if names is not None and poses is not None and len(names) != len(now["names"]):
        return _other_images(names, now["names"])
    if poses is not None:
        apart = torch.linalg.vector_norm(poses[:, :, 3] - now["poses"][:, :, 3], dim=-1)
        turned = torch.linalg.matrix_norm(poses[:, :, :3] - now["poses"][:, :, :3])
        # If all cameras are in one place, their distance from the origin is used instead of their spread.
        size = max(float(poses[:, :, 3].std(0).norm()) if len(poses) > 1 else 0.0, 1e-3 * float(poses.abs().max()))
        wrong = (apart > _SAME * size) | (turned > 10 * _SAME)
        if bool(wrong.any()):
            worst = int(apart.argmax())
            return (
                f"the cameras of {int(wrong.sum())} of {len(poses)} images are not where they were; "
                f"that of {now['names'][worst]} is {float(apart[worst]):.3g} (scene units) away"
            ) + _rescaled(before, now)
        lenses = before["lenses"]
        other = lenses.shape != now["lenses"].shape or not torch.allclose(lenses, now["lenses"], rtol=_SAME, atol=_SAME)
        return "the cameras' focal lengths, centres or distortion differ" if other else None
    scale, transform = before["scale"], before["transform"]
    same = torch.allclose(transform, now["transform"], rtol=_SAME, atol=_SAME) and abs(scale / now["scale"] - 1) < _SAME
    return None if same else f"{NORMALIZATION} places the scene differently" + _rescaled(before, now)


def _other_images(before: list[str], now: list[str]) -> str:
    gone, new = ([n for n in some if n not in others] for some, others in ((before, now), (now, before)))
    parts = [f"there were {len(before)} images to train on, and now there are {len(now)}"]
    for what, some in (("gone", gone), ("new", new)):
        if some:
            more = f" and {len(some) - _NAMED} more" if len(some) > _NAMED else ""
            parts.append(f"{what}: {', '.join(some[:_NAMED])}{more}")
    return "; ".join(parts)


def _rescaled(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if abs(before["scale"] / now["scale"] - 1) < _SAME:
        return ""
    return f", and the scene is scaled by {now['scale']:.4g}, then by {before['scale']:.4g}"


def _lenses(cameras: Cameras) -> Tensor:
    """[N, K]: camera type, focal lengths and centre relative to the image's size, distortion."""
    width, height = cameras.width.double(), cameras.height.double()
    parts = [
        cameras.camera_type.double(),
        *(cameras.fx / width, cameras.fy / height, cameras.cx / width, cameras.cy / height),
    ]
    if cameras.distortion_params is not None:
        parts.append(cameras.distortion_params.double())
    return torch.cat([part.reshape(len(width), -1) for part in parts], dim=-1).cpu()
