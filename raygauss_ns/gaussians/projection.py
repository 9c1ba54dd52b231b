"""Projection of Gaussians into the training images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ns_support.lenses.lens import Lens
from raygauss_ns.casting.types import Gaussians


class View(NamedTuple):
    """The crop of a camera's image that one training step rendered.

    Attributes:
        world_to_camera: [3, 4]; the camera looks along its -z axis.
        lens: projects points to pixels.
        window: the crop: first row, first column, number of rows, number of columns.
    """

    world_to_camera: Tensor
    lens: Lens
    window: tuple[int, int, int, int]

    @property
    def fraction(self) -> float:
        """The crop's fraction of the image's pixels."""
        _, _, rows, columns = self.window
        return rows * columns / float(self.lens.width * self.lens.height)

    def distances(self, means: Tensor) -> Tensor:
        """[N] distances of points [N, 3] from the camera's centre (scene units); 0 for an orthographic lens."""
        if self.lens.same_size_at_any_distance:
            return torch.zeros_like(means[:, 0])
        return torch.linalg.vector_norm(in_camera_space(means, self.world_to_camera), dim=-1)

    def misses(self, means: Tensor) -> Tensor:
        """[N] bool, which points [N, 3] are in the image but outside the crop."""
        top, left, rows, columns = self.window
        column, row, seen = self.lens.project(in_camera_space(means, self.world_to_camera))
        inside = (column >= left) & (column < left + columns) & (row >= top) & (row < top + rows)
        return seen & ~inside


def in_camera_space(means: Tensor, world_to_camera: Tensor) -> Tensor:
    """[N, 3] points [N, 3] in the space of a camera [3, 4] that looks along its -z axis."""
    pose = world_to_camera.to(means)
    return means @ pose[:, :3].T + pose[:, 3]


@torch.no_grad()
def smallest_resolved_scale(means: Tensor, world_to_cameras: Tensor, lenses: Sequence[Lens]) -> Tensor:
    """Half a pixel's size at each Gaussian, in the camera with the finest pixels there; for pinholes 0.5 z_min / f_max.

    A smaller Gaussian is below the resolution of all training images, and only causes aliasing.

    Args:
        means: [N, 3].
        world_to_cameras: [C, 3, 4]; cameras look along their -z axis.
        lenses: C lenses.

    Returns:
        [N] (scene units); 0 for a Gaussian that no camera sees.
    """
    finest = means.new_full((len(means),), torch.inf)
    for camera, lens in zip(world_to_cameras, lenses, strict=True):
        points = in_camera_space(means, camera)
        size = torch.where(lens.project(points).seen, lens.pixel_size(points), torch.inf)
        finest = torch.minimum(finest, size)
    return torch.where(finest.isfinite(), 0.5 * finest, 0.0)


PIXEL_VARIANCE = 1 / 24
"""Variance along one side of what a pixel averages, in pixels squared. That of its square is 1/12, which is right for
what is transparent. What is opaque stays opaque when averaged, and its outline swells: half of it measured best."""


def pixel_angle(lens: Lens) -> float:
    """Size, at distance 1, of the pixel that looks straight ahead (scene units); of an orthophoto at any distance."""
    return float(lens.pixel_size(torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64)))


@torch.no_grad()
def widened(gaussians: Gaussians, world_to_camera: Tensor, lens: Lens, trained: float) -> Gaussians:
    """The Gaussians as pixels show them that are larger than those of the training images.

    A ray through a pixel's centre sees nothing of what lies between it and the next. So each Gaussian is averaged over
    its share of a pixel, as the pixel of a downscaled photograph is: convolved with a Gaussian as wide as the pixel,
    less what the training pixels had averaged already. With pixels of size p at a Gaussian,

        s'^2 = s^2 + (p^2 - p_trained^2) / 24,      sigma' s1' s2' s3' = sigma s1 s2 s3.

    Args:
        gaussians: the N Gaussians.
        world_to_camera: [3, 4]; the camera looks along its -z axis.
        lens: of the image to render.
        trained: `pixel_angle` of the training images.

    Returns:
        The same Gaussians if the pixels are no larger.
    """
    ratio = trained / pixel_angle(lens)
    if ratio >= 1:
        return gaussians
    points = in_camera_space(gaussians.means, world_to_camera)
    size = torch.where(lens.project(points).seen, lens.pixel_size(points), 0.0)[:, None]
    scales = (gaussians.scales.square() + PIXEL_VARIANCE * (1 - ratio**2) * size.square()).sqrt()
    kept = (gaussians.scales / scales).prod(-1)
    return gaussians._replace(scales=scales, densities=gaussians.densities * kept)


_WIDEST = math.radians(75)
"""Half angle of a cone of rays from which hardly any Gaussian is outside of it."""
_SLACK = 1e-3
"""Angle for what float32 rounds off."""


@torch.no_grad()
def rows_in_cone(gaussians: Gaussians, center: Tensor, directions: Tensor, density_threshold: float) -> Tensor | None:
    """The Gaussians that rays from one point may meet: their supports reach into the cone around the rays.

    A Gaussian's support, where it is denser than eps, is inside the ball of radius s_max sqrt(2 log(sigma / eps)).

    Args:
        gaussians: the N Gaussians.
        center: [3] where the rays begin.
        directions: [R, 3] of unit length.
        density_threshold: eps.

    Returns:
        Their rows, int64, ascending; None if the rays are too far apart for a cone to leave many out.
    """
    axis = torch.nn.functional.normalize(directions.mean(0), dim=0)
    angle = torch.acos((directions @ axis).min().clamp(-1.0, 1.0))
    if not bool(angle < _WIDEST):
        return None
    away = gaussians.means - center
    distance = torch.linalg.vector_norm(away, dim=-1)
    peak = (gaussians.densities / density_threshold).clamp_min(1.0)
    radius = gaussians.scales.amax(-1) * (2.0 * peak.log()).sqrt()
    apart = torch.acos(((away @ axis) / distance).clamp(-1.0, 1.0))
    reach = torch.asin((radius / distance).clamp(max=1.0)) + (angle + _SLACK)
    # Whatever is not finite stays: `cast` decides about it.
    missed = (gaussians.densities <= density_threshold) | ((apart > reach) & (radius < distance))
    return (~missed).nonzero()[:, 0]
