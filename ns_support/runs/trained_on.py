"""What a checkpoint was trained on: a run is resumed on the same photographs in the same places, or not at all.

nerfstudio normalises a scene's cameras anew at each start. Two photographs more or fewer move all others, and the model
that a checkpoint holds would stand beside its own photographs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import DataManager
from torch import Tensor

KEY = "trained_on"
"""Its place in a checkpoint."""
_SAME = 1e-4
"""Relative difference below which two numbers are the same: files hold six digits."""
_NAMED = 3
"""So many photographs are named."""


def trained_on(datamanager: DataManager) -> dict[str, Any]:
    """What tells the training data of a run from others.

    Returns:
        "names", the N photographs' file names; "transform" [3, 4] and "scale", with which nerfstudio normalised the
        scene; "poses" [N, 3, 4], camera to world; "lenses" [N, K], independent of the photographs' resolution.
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
    """The part of `trained_on` that nerfstudio keeps in the run's folder, for checkpoints without; None without it."""
    path = checkpoint.parent.parent / "dataparser_transforms.json"
    try:
        content = json.loads(path.read_text("utf8"))
        return {"transform": torch.tensor(content["transform"]).double(), "scale": float(content["scale"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between the data that a run was trained on and what is there now, in words; None: nothing.

    Args:
        before: what `trained_on` gave then, or a part of it.
        now: what it gives now.
    """
    names, poses = before.get("names"), before.get("poses")
    if names is not None and poses is not None and len(names) != len(now["names"]):
        return _other_photographs(names, now["names"])
    if poses is not None:
        apart = torch.linalg.vector_norm(poses[:, :, 3] - now["poses"][:, :, 3], dim=-1)
        turned = torch.linalg.matrix_norm(poses[:, :, :3] - now["poses"][:, :, :3])
        # Where all cameras stand in one place, their distance from the origin stands in for their spread.
        size = max(float(poses[:, :, 3].std(0).norm()) if len(poses) > 1 else 0.0, 1e-3 * float(poses.abs().max()))
        wrong = (apart > _SAME * size) | (turned > 10 * _SAME)
        if bool(wrong.any()):
            worst = int(apart.argmax())
            return (
                f"the cameras of {int(wrong.sum())} of {len(poses)} photographs are not where they were; "
                f"that of {now['names'][worst]} is {float(apart[worst]):.3g} (scene units) away"
            ) + _rescaled(before, now)
        lenses = before["lenses"]
        other = lenses.shape != now["lenses"].shape or not torch.allclose(lenses, now["lenses"], rtol=_SAME, atol=_SAME)
        return "the cameras' focal lengths, centres or distortion differ" if other else None
    scale, transform = before["scale"], before["transform"]
    same = torch.allclose(transform, now["transform"], rtol=_SAME, atol=_SAME) and abs(scale / now["scale"] - 1) < _SAME
    return None if same else "nerfstudio places the scene differently" + _rescaled(before, now)


def _other_photographs(before: list[str], now: list[str]) -> str:
    gone, new = ([n for n in some if n not in others] for some, others in ((before, now), (now, before)))
    parts = [f"there were {len(before)} photographs to train on, and now there are {len(now)}"]
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
    """[N, K]: kind, focal lengths and centre in parts of the image's size, distortion."""
    width, height = cameras.width.double(), cameras.height.double()
    parts = [
        cameras.camera_type.double(),
        *(cameras.fx / width, cameras.fy / height, cameras.cx / width, cameras.cy / height),
    ]
    if cameras.distortion_params is not None:
        parts.append(cameras.distortion_params.double())
    return torch.cat([part.reshape(len(width), -1) for part in parts], dim=-1).cpu()
