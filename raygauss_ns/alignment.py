"""Where a held-out camera really stood, from its image and the trained scene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from ns_support.corrections.poses import aligned, telling_tiles
from ns_support.lenses.lens import Window
from ns_support.rays import camera_rays
from raygauss_ns.targets import ground_truth

if TYPE_CHECKING:
    from raygauss_ns.model import RayGaussModel

_SIDE, _CELLS = 32, 3
"""Side of a tile (pixels), and the root of their number: 9,216 pixels, whatever the size of the image."""


def aligned_camera(model: RayGaussModel, camera: Cameras, batch: dict[str, Any]) -> Cameras:
    """A camera moved to where the scene fits some tiles of its image best (`aligned`).

    Args:
        model: in evaluation mode, its training poses refined; it is not changed.
        camera: one camera of shape [1].
        batch: its image, and perhaps its mask.
    """
    gaussians, settings = model.cloud.gaussians(), model.cast_settings
    tiles = telling_tiles(batch["image"].float(), _SIDE, _CELLS)
    heights = [tile[2] for tile in tiles]

    def loss(moved: Cameras, motion: Tensor) -> Tensor:
        outputs = model.render(_stacked(moved, tiles), gaussians, settings, motion=motion)
        errors = []
        for tile, rgb, behind in zip(
            tiles, outputs["rgb"].split(heights), outputs["background"].split(heights), strict=True
        ):
            image, mask = ground_truth({"window": torch.tensor(tile), "background": behind}, batch, rgb.device)
            errors.append((rgb - image).square() * (1 if mask is None else mask))
        return torch.cat(errors).mean()

    assert model.refinement is not None
    return aligned(camera, loss, model.refinement.unit)


def _stacked(camera: Cameras, tiles: list[Window]) -> RayBundle:
    """The rays of windows of the same width, one below the other, as if they were one image."""
    parts, fields = [camera_rays(camera, tile) for tile in tiles], ("origins", "directions", "pixel_area")
    stacked = RayBundle(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))
    if any(part.fars is not None for part in parts):
        nears = [torch.zeros_like(part.pixel_area) if part.nears is None else part.nears for part in parts]
        fars = [torch.full_like(part.pixel_area, torch.inf) if part.fars is None else part.fars for part in parts]
        stacked.nears, stacked.fars = torch.cat(nears), torch.cat(fars)
    return stacked
