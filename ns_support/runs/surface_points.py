"""Points on the surfaces that a finished run shows, for another method to start from.

A radiance field that was trained for a minute knows roughly where the surfaces are (ConeGS, 3DV 2026, starts Gaussians
there). Any method of nerfstudio will do that renders "depth" along the ray, "accumulation" and "rgb".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from ns_support.errors import UserError
from ns_support.lenses.triangulation import Points
from ns_support.rays import camera_rays, downscaled
from ns_support.runs.saved_runs import find_config
from ns_support.runs.trained_on import moved, trained_on

_CAMERAS = 100
"""Training cameras whose view is enough to find the surfaces from."""
_PIXELS_PER_POINT = 4
"""Pixels to look through for each point that is wanted: some show nothing."""
_SOLID = 0.5
"""Accumulation from which a pixel shows a surface."""


@torch.no_grad()
def surface_points(run: Path, here: Mapping[str, Any], count: int) -> Points:
    """Points where the pixels of small images from a run's training cameras end.

    Args:
        run: a finished run of any method, its folder or config.yml.
        here: `trained_on` of the data that the points are for.
        count: maximum number of points, drawn at random from those found.

    Raises:
        UserError: the run is of other data, or shows no surface.
    """
    from ns_support.commands.finished import open_finished  # late: it imports every installed method

    path = find_config(run)
    opened: Any = open_finished(path, "inference")[1]
    difference = moved(trained_on(opened.datamanager), here)
    if difference is not None:
        raise UserError(f"The run {path} is of other data: {difference}. Train it on this data first.")
    cameras = opened.datamanager.train_dataset.cameras.to(opened.device)
    chosen = torch.linspace(0, len(cameras) - 1, min(_CAMERAS, len(cameras))).round().long().unique().tolist()
    pixels = sum(int(cameras.width[i] * cameras.height[i]) for i in chosen)
    factor = max(int((pixels / (_PIXELS_PER_POINT * count)) ** 0.5), 1)
    found: list[Tensor] = []
    for i in track(chosen, description="Looking for surfaces", transient=True):
        camera = cameras[i : i + 1]
        camera = downscaled(camera, min(factor, int(camera.width), int(camera.height)))
        outputs = opened.model.get_outputs_for_camera(camera)
        rays = camera_rays(camera)
        points = rays.origins.to(outputs["depth"]) + rays.directions.to(outputs["depth"]) * outputs["depth"]
        solid = outputs["accumulation"][..., 0] > _SOLID
        found.append(torch.cat([points[solid], 255 * outputs["rgb"][solid].clamp(0, 1)], dim=-1).float().cpu())
    rows = torch.cat(found)
    rows = rows[rows.isfinite().all(-1)]
    if len(rows) == 0:
        raise UserError(f"The run {path} shows no surface from its training cameras: train it for longer.")
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]]
    return Points(rows[:, :3], rows[:, 3:].round().byte())
