"""Where Gaussians lie in the images that were taken of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """The part of a camera's image that one training step looked at.

    Attributes:
        world_to_camera: [3, 4]; the camera looks along its -z axis.
        intrinsics: fx, fy, cx, cy, width, height (pixels).
        window: first row, first column, rows and columns that were rendered.
        pinhole: whether points project as `project` has it; if not, only the sizes count.
    """

    world_to_camera: Tensor
    intrinsics: tuple[float, ...]
    window: tuple[int, int, int, int]
    pinhole: bool = True

    @property
    def share(self) -> float:
        """The window's share of the image's pixels."""
        _, _, rows, columns = self.window
        return rows * columns / (self.intrinsics[4] * self.intrinsics[5])

    def distances(self, means: Tensor) -> Tensor:
        """[N] distances of points [N, 3] from the camera's centre (scene units)."""
        # A rotation keeps lengths.
        camera = self.world_to_camera.to(means)
        return torch.linalg.vector_norm(means @ camera[:, :3].T + camera[:, 3], dim=-1)

    def misses(self, means: Tensor) -> Tensor:
        """[N] bool, which points [N, 3] the image shows outside the window; none where that is unknown."""
        if not self.pinhole:
            return means.new_zeros(len(means), dtype=torch.bool)
        top, left, rows, columns = self.window
        column, row, depth = project(means, self.world_to_camera.to(means), self.intrinsics)
        inside = (column >= left) & (column < left + columns) & (row >= top) & (row < top + rows)
        return in_image(column, row, depth, self.intrinsics) & ~inside


def project(means: Tensor, world_to_camera: Tensor, intrinsics: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Column, row (pixels) and depth along the camera's axis (scene units) of N points; lens distortion left aside.

    Args:
        means: [N, 3].
        world_to_camera: [3, 4]; the camera looks along its -z axis.
        intrinsics: fx, fy, cx, cy and more that is not used here.
    """
    fx, fy, cx, cy = intrinsics[:4]
    x, y, z = (means @ world_to_camera[:, :3].T + world_to_camera[:, 3]).unbind(-1)
    return cx - fx * x / z, cy + fy * y / z, -z


def in_image(column: Tensor, row: Tensor, depth: Tensor, intrinsics: tuple[float, ...]) -> Tensor:
    """[N] bool, which projected points lie before the camera and within its image."""
    width, height = intrinsics[4:6]
    return (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)


@torch.no_grad()
def smallest_resolved_scale(means: Tensor, world_to_cameras: Tensor, intrinsics: Tensor) -> Tensor:
    """Half a pixel's size at the Gaussian, in the camera that sees it most finely: s >= 0.5 z_min / f_max.

    Below that a Gaussian is smaller than what any training image resolves, and only aliases.

    Args:
        means: [N, 3].
        world_to_cameras: [C, 3, 4]; cameras look along their -z axis.
        intrinsics: [C, 6]: fx, fy, cx, cy, width, height (pixels).

    Returns:
        [N] (scene units); 0 for a Gaussian that no camera sees.
    """
    finest = means.new_full((len(means),), torch.inf)
    for camera, inner in zip(world_to_cameras, intrinsics.tolist(), strict=True):
        column, row, depth = project(means, camera, inner)
        seen = in_image(column, row, depth, inner)
        finest = torch.minimum(finest, torch.where(seen, depth / max(inner[:2]), torch.inf))
    return torch.where(finest.isfinite(), 0.5 * finest, 0.0)
