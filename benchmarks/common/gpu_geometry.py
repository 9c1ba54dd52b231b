"""The Gaussians of a trained scene as a small file: what the caster needs of a checkpoint, 56 bytes each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raygauss_ns.casting import Gaussians

_PARAMETERS = "_model.cloud.params."


def save_geometry(checkpoint: Path, path: Path) -> int:
    """Write the Gaussians of a checkpoint of `raygauss`, those with a density, and their mean colours.

    Args:
        checkpoint: a .ckpt file.
        path: .npz file to write.

    Returns:
        Their number.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["pipeline"]
    params = {name.removeprefix(_PARAMETERS): value for name, value in state.items() if name.startswith(_PARAMETERS)}
    # Version 0.1.0 called it by another name.
    unit = float(state.get("_model.cloud._extra_state", state.get("_model.cloud.scene_unit")))
    alive = params["densities"] > 0
    values = {
        "means": params["means"],
        "scales": params["scales"].exp(),
        "quats": params["quats"],
        "densities": params["densities"] / unit,
        "colors": 0.5 + 0.28209479 * params["sh_base"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: value[alive].float().numpy() for name, value in values.items()})
    return int(alive.sum())


def load_geometry(path: Path, device: str) -> tuple[Gaussians, Tensor]:
    """The Gaussians of such a file, and their colours [N, 3]."""
    with np.load(path) as file:
        found = {name: torch.from_numpy(file[name]).to(device) for name in file.files}
    colors = found.pop("colors")
    return Gaussians(**found), colors
