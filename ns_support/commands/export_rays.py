"""Rays for nerfstudio's exporters: some of an image for a point cloud, one per texel of a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from ns_support.commands.given_rays import unit_directions
from ns_support.rays import camera_rays


@dataclass
class RaysWanted:
    """Stands in for a pixel sampler, on which `ns-export pointcloud` and `poisson` set the number of rays."""

    num_rays_per_batch: int | None = None
    """Number of rays requested per batch, >= 1; None if no exporter has set it, as in training."""


def image_rays(cameras: Cameras, index: int, count: int) -> RayBundle:
    """Rays through the centres of the pixels of some whole rows of one camera's image.

    Whole rows, because neighbouring rays are cast together.

    Args:
        cameras: of any kind.
        index: of the camera.
        count: maximum number of rays, but at least one row is returned. Rows start at a random one; the whole image is
            returned if it has no more rays.

    Returns:
        [rows, width] rays on the cameras' device.
    """
    height, width = int(cameras.height[index]), int(cameras.width[index])
    rows = min(max(count // width, 1), height)
    top = int(torch.randint(height - rows + 1, ()))
    return camera_rays(cameras[index : index + 1], (top, 0, rows, width))


def is_of_texels(rays: RayBundle) -> bool:
    """Whether rays are those of a mesh's texels: bounded, and with different origins."""
    bounded = rays.nears is not None and rays.fars is not None
    return bounded and bool((rays.origins != rays.origins.reshape(-1, 3)[0]).any())


def texel_rays(rays: RayBundle, near_plane: float) -> RayBundle:
    """Rays that cover the same segments, but begin at a model's near plane instead of being cut by it.

    nerfstudio's texel rays begin at a distance of 0 from their origins. Where its interpolated normal is zero, so is
    the texel's direction; it becomes +z.

    Args:
        rays: [*] with nears and fars, of any type.
        near_plane: distance below which the model renders nothing (scene units), >= 0.
    """
    assert rays.nears is not None
    assert rays.fars is not None
    directions, _ = unit_directions(rays.directions)
    return RayBundle(
        rays.origins.float() - near_plane * directions,
        directions,
        rays.pixel_area,
        rays.camera_indices,
        nears=rays.nears.float() + near_plane,
        fars=rays.fars.float() + near_plane,
    )


def groups_of_directions(rays: RayBundle, count: int = 512) -> Iterator[tuple[Tensor, RayBundle]]:
    """Rays rotated about their midpoints to the nearest of a set of directions, and grouped by direction.

    For a model that computes colours once for all rays of the same direction. With 512 directions a ray is rotated by
    about 3 degrees on average.

    Args:
        rays: R rays with nears and fars.
        count: number of directions, >= 1, evenly distributed over the sphere (a Fibonacci lattice).

    Yields:
        (indices [r] of the group's rays, the rotated rays).
    """
    assert rays.nears is not None
    assert rays.fars is not None
    lattice = _even_directions(count).to(rays.directions)
    nearest = torch.cat([(part @ lattice.T).argmax(-1) for part in rays.directions.split(1 << 16)])
    middle = 0.5 * (rays.nears + rays.fars)
    centers = rays.origins + middle * rays.directions
    order = torch.argsort(nearest, stable=True)
    for own in order.split(torch.bincount(nearest, minlength=count).tolist()):
        if len(own) == 0:
            continue
        directions = lattice[nearest[own]]
        origins = centers[own] - middle[own] * directions
        yield own, RayBundle(origins, directions, rays.pixel_area[own], nears=rays.nears[own], fars=rays.fars[own])


def by_direction(rays: RayBundle, render: Callable[[RayBundle], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Render rays [*] in `groups_of_directions`.

    Args:
        rays: with nears and fars.
        render: maps r rays to outputs [r, k].

    Returns:
        Outputs [*, k].
    """
    shape, flat = rays.origins.shape[:-1], rays.flatten()
    found: dict[str, Tensor] = {}
    for own, group in groups_of_directions(flat):
        for name, values in render(group).items():
            found.setdefault(name, values.new_zeros(len(flat), values.shape[-1]))[own] = values
    return {name: values.view(*shape, -1) for name, values in found.items()}


def _even_directions(count: int) -> Tensor:
    """[count, 3] unit vectors."""
    i = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * i / count
    angle = i * math.pi * (3 - math.sqrt(5))
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], -1).float()
