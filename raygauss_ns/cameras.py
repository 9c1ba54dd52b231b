"""From nerfstudio's cameras to plain tensors: rays, pinholes, and how far the cameras spread."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from raygauss_ns.projection import View


def camera_extent(cameras: Cameras) -> float:
    """1.1 times the largest distance of a camera from the cameras' mean (scene units); 1 for a single camera."""
    centers = cameras.camera_to_worlds[..., :3, 3].reshape(-1, 3)
    extent = 1.1 * float(torch.linalg.vector_norm(centers - centers.mean(0), dim=-1).max())
    return extent if extent > 0 else 1.0


def camera_rays(camera: Cameras, window: tuple[int, int, int, int]) -> RayBundle:
    """Rays through the centres of a window of a camera's pixels; [rows, columns] of them, without pixel areas.

    nerfstudio's `generate_rays` serves every kind of camera in one batch and took longer than the caster; for the usual
    one, a pinhole without distortion, the same directions are a few lines.

    Args:
        camera: one camera.
        window: first row, first column, rows, columns.
    """
    top, left, rows, columns = window
    if not is_pinhole(camera):
        coords = camera.get_image_coords()[top : top + rows, left : left + columns].to(camera.device)
        return camera.generate_rays(camera_indices=0, coords=coords, keep_shape=True)
    pose = camera.camera_to_worlds.reshape(3, 4)
    x = (torch.arange(left, left + columns, device=pose.device) + 0.5 - camera.cx.item()) / camera.fx.item()
    y = (torch.arange(top, top + rows, device=pose.device) + 0.5 - camera.cy.item()) / camera.fy.item()
    local = torch.stack([x.expand(rows, -1), -y[:, None].expand(-1, columns), -torch.ones_like(x).expand(rows, -1)], -1)
    directions = torch.nn.functional.normalize(local @ pose[:, :3].T, dim=-1)
    return RayBundle(pose[:, 3].expand_as(directions), directions, torch.ones_like(directions[..., :1]))


def pinhole_cameras(cameras: Cameras, device: torch.device) -> tuple[Tensor, Tensor]:
    """What `smallest_resolved_scale` wants to know of C cameras, lens distortion left aside.

    Returns:
        [C, 3, 4] world to camera, and [C, 6]: fx, fy, cx, cy, width, height.
    """
    poses = cameras.camera_to_worlds.reshape(-1, 3, 4).to(device)
    rotations = poses[:, :, :3].transpose(1, 2)
    fields = (cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.width, cameras.height)
    intrinsics = torch.cat([f.reshape(-1, 1).float() for f in fields], dim=1).to(device)
    return torch.cat([rotations, -rotations @ poses[:, :, 3:]], dim=2), intrinsics


def camera_view(camera: Cameras, window: tuple[int, int, int, int]) -> View:
    """What a training step looks at, for density control.

    Args:
        camera: one camera.
        window: first row, first column, rows, columns.
    """
    poses, intrinsics = pinhole_cameras(camera, camera.camera_to_worlds.device)
    return View(poses[0], tuple(intrinsics[0].tolist()), window, is_pinhole(camera))


def is_pinhole(camera: Cameras) -> bool:
    """Whether one camera is a perspective one without lens distortion."""
    distorted = camera.distortion_params is not None and bool(camera.distortion_params.any())
    return not distorted and int(camera.camera_type) == CameraType.PERSPECTIVE.value
