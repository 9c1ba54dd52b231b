"""How an image changes when its camera moves a little: the optical flow of a still scene, times the image's slopes.

The colour C of a pixel is that of a point P on its ray, where the ray meets the scene. If the camera turns by r and
shifts by t, the pixel looks through P + r x (P - c) + t instead, c being its centre; the colour there follows from the
slopes of the image between neighbouring pixels. This leaves out what moves in front of what (Lucas and Kanade 1981;
Baker and Matthews 2004, section 3), and is no gradient to follow, but near enough to tell how long a step to take.
"""

from __future__ import annotations

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor


@torch.no_grad()
def view_change(rgb: Tensor, depth: Tensor, rays: RayBundle, camera_to_world: Tensor, unit: float) -> Tensor:
    """Derivatives of the colours of an image with respect to a motion of its camera.

    Args:
        rgb: [H, W, 3] an image or a crop, H and W at least 2.
        depth: [H, W, 1] distance along the ray (scene units).
        rays: [H, W] its rays.
        camera_to_world: [3, 4] the camera's pose.
        unit: length of a shift of 1 (scene units).

    Returns:
        [H, W, 3, 6] by a shift (units) and a turn (radians) in the camera's frame; 0 where rays do not spread.
    """
    turn, center = camera_to_world[:, :3], camera_to_world[:, 3]
    directions = rays.directions @ turn
    offsets = (rays.origins - center) @ turn
    points = offsets + depth * directions
    down, across = _spacings(offsets, directions, depth)
    # A slope s with s . down and s . across as in the image, and none along the ray.
    normal = torch.linalg.cross(down, across)
    volume = (normal * directions).sum(-1, keepdim=True)
    scale = torch.where(volume.abs() > 1e-20, 1 / volume, 0.0)
    by_row, by_column = torch.gradient(rgb, dim=(0, 1))
    of_row, of_column = (
        scale * torch.linalg.cross(across, directions),
        scale * torch.linalg.cross(directions, down),
    )
    slopes = by_row[..., None] * of_row[..., None, :] + by_column[..., None] * of_column[..., None, :]
    return torch.cat([slopes * unit, torch.linalg.cross(points[..., None, :].expand_as(slopes), slopes)], dim=-1)


def _spacings(offsets: Tensor, directions: Tensor, depth: Tensor) -> list[Tensor]:
    """How far neighbouring rays are apart at each ray's own depth, by row and by column."""
    starts, turns = torch.gradient(offsets, dim=(0, 1)), torch.gradient(directions, dim=(0, 1))
    return [start + depth * turn for start, turn in zip(starts, turns, strict=True)]
