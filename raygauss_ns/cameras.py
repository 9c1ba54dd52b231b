"""From nerfstudio's cameras and rays to plain tensors."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from ns_support.kernels.constants import constant
from ns_support.lenses.lens import Lens, Window
from ns_support.rays import camera_lenses, lens_of
from raygauss_ns.casting import Rays
from raygauss_ns.gaussians.projection import View


def posed_lenses(cameras: Cameras, device: torch.device) -> tuple[Tensor, list[Lens]]:
    """What `smallest_resolved_scale` wants to know of C cameras.

    Returns:
        [C, 3, 4] world to camera, and C lenses.

    Raises:
        UserError: if a camera's parameters make no sense.
    """
    return _world_to_cameras(cameras).to(device), camera_lenses(cameras)


def _world_to_cameras(cameras: Cameras) -> Tensor:
    """[C, 3, 4]."""
    poses = cameras.camera_to_worlds.reshape(-1, 3, 4).float()
    rotations = poses[:, :, :3].transpose(1, 2)
    return torch.cat([rotations, -rotations @ poses[:, :, 3:]], dim=2)


def camera_view(camera: Cameras, window: Window) -> View:
    """What a training step looks at, for density control.

    Args:
        camera: one camera.
        window: first row, first column, rows, columns.
    """
    return View(_world_to_cameras(camera)[0], lens_of(camera), window)


def observed_view(camera: Cameras, window: Window, weighted: bool) -> View | None:
    """`camera_view`, or None where that is the same to density control.

    Args:
        camera: one camera.
        window: first row, first column, rows, columns.
        weighted: whether distances to the camera matter.
    """
    lens = lens_of(camera)
    whole = window == (0, 0, int(lens.height), int(lens.width))
    return None if whole and not weighted else camera_view(camera, window)


def window_extent(lens: Lens, side: int) -> tuple[int, int]:
    """Rows and columns of a crop of an image, at most `side` pixels each; 0: those of the whole image."""
    height, width = int(lens.height), int(lens.width)
    return (min(side, height), min(side, width)) if side > 0 else (height, width)


def random_window(lens: Lens, side: int, generator: torch.Generator) -> Window:
    """A crop of an image, at most `side` pixels high and wide; 0: the whole image."""
    height, width = int(lens.height), int(lens.width)
    rows, columns = window_extent(lens, side)
    top = int(torch.randint(height - rows + 1, (), generator=generator))
    left = int(torch.randint(width - columns + 1, (), generator=generator))
    return top, left, rows, columns


def flat_rays(bundle: RayBundle, near: float) -> Rays:
    """Nerfstudio's rays as the caster takes them.

    Args:
        bundle: rays of shape [*]; those of shape [H, W] are an image's.
        near: distance at which rays begin that begin nowhere else (scene units).
    """
    origins, directions = bundle.origins.reshape(-1, 3), bundle.directions.reshape(-1, 3)
    if origins.is_cuda and origins.dtype == torch.float32:
        nears, fars = (constant(value, origins.device).expand(len(origins)) for value in (near, torch.inf))
    else:
        nears = torch.full_like(origins[:, 0], near)
        fars = torch.full_like(nears, torch.inf)
    if bundle.nears is not None and bundle.fars is not None:
        nears, fars = torch.maximum(nears, bundle.nears.reshape(-1)), bundle.fars.reshape(-1)
    shape = bundle.origins.shape[:-1]
    return Rays(origins, directions, nears, fars, shape[1] if len(shape) == 2 else 0)
