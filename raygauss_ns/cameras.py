"""From nerfstudio's cameras to plain tensors: poses with their lenses, and how far the cameras spread."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from ns_support.lenses.lens import Lens
from ns_support.rays import Window, camera_lenses
from raygauss_ns.gaussians.projection import View


def camera_extent(cameras: Cameras) -> float:
    """1.1 times the largest distance of a camera from the cameras' mean (scene units); 1 for a single camera."""
    centers = cameras.camera_to_worlds[..., :3, 3].reshape(-1, 3)
    extent = 1.1 * float(torch.linalg.vector_norm(centers - centers.mean(0), dim=-1).max())
    return extent if extent > 0 else 1.0


def posed_lenses(cameras: Cameras, device: torch.device) -> tuple[Tensor, list[Lens]]:
    """What `smallest_resolved_scale` wants to know of C cameras.

    Returns:
        [C, 3, 4] world to camera, and C lenses.

    Raises:
        UserError: if a camera's parameters make no sense.
    """
    poses = cameras.camera_to_worlds.reshape(-1, 3, 4).to(device, torch.float32)
    rotations = poses[:, :, :3].transpose(1, 2)
    return torch.cat([rotations, -rotations @ poses[:, :, 3:]], dim=2), camera_lenses(cameras)


def camera_view(camera: Cameras, window: Window) -> View:
    """What a training step looks at, for density control.

    Args:
        camera: one camera.
        window: first row, first column, rows, columns.
    """
    poses, (lens,) = posed_lenses(camera, camera.camera_to_worlds.device)
    return View(poses[0], lens, window)
