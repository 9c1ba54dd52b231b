"""Rays as others make them, for models that want single precision, unit directions and both ends.

nerfstudio's commands make ray bundles by hand, as little of them as its own models look at: `ns-export pointcloud` asks
for a probe ray along (1, 1, 1), `ns-render --render-nearest-camera` for one that ends at the integer 100 and that has
no direction where a rendered camera stands where a training camera does.
"""

from __future__ import annotations

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor


def unit_directions(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of length 1.

    Args:
        directions: [*, 3] numbers of any type.

    Returns:
        [*, 3] float32, those of unit length to 1e-6 as they were and +z for those that point nowhere (of length 0 or
        not finite); [*, 1] bool, whether a direction points somewhere.
    """
    exact = directions.double()
    # By the largest part first: a square may overflow, or vanish.
    largest = exact.abs().amax(-1, keepdim=True)
    somewhere = exact.isfinite().all(-1, keepdim=True) & (largest > 0)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=exact.dtype, device=exact.device)
    exact = torch.where(somewhere, exact, up)
    length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    scaled = torch.where(somewhere, exact / largest, up)
    turned = torch.where((length - 1).abs() < 1e-6, exact, torch.nn.functional.normalize(scaled, dim=-1))
    return turned.float(), somewhere


def given_rays(rays: RayBundle, device: torch.device | str) -> RayBundle:
    """The same rays, fit for a model.

    Args:
        rays: [*] rays, their numbers of any type, their directions of any length, with or without nears and fars
            ([*], [*, 1] or one for all; distances in scene units whatever the directions' length).
        device: where they go.

    Returns:
        A bundle of shape [*] with float32 origins, unit directions, pixel areas [*, 1], camera indices [*, 1] int64 if
        any, and nears and fars [*, 1] if the bundle had either or if a ray points nowhere: it ends where it begins. No
        times or metadata, which no model here looks at.

    Raises:
        ValueError: origins and directions do not fit together, or the last dimension is not 3.
    """
    origins, directions = torch.broadcast_tensors(rays.origins.to(device), rays.directions.to(device))
    if origins.shape[-1:] != (3,):
        raise ValueError(f"origins and directions must be [*, 3], got {list(rays.origins.shape)}")
    shape = origins.shape[:-1]
    origins = origins.float()
    directions, usable = unit_directions(directions)
    usable &= origins.isfinite().all(-1, keepdim=True)
    nears, fars = (_of_each(bound, shape, device) for bound in (rays.nears, rays.fars))
    if nears is not None or fars is not None or not bool(usable.all()):
        nears = torch.zeros_like(origins[..., :1]) if nears is None else nears
        fars = torch.full_like(nears, torch.inf) if fars is None else fars
        nears, fars = (torch.where(usable, bound, 0.0) for bound in (nears, fars))
    areas = torch.ones_like(origins[..., :1]) if rays.pixel_area is None else _of_each(rays.pixel_area, shape, device)
    cameras = _of_each(rays.camera_indices, shape, device)
    return RayBundle(
        origins.nan_to_num(0.0, 0.0, 0.0),
        directions,
        areas,
        None if cameras is None else cameras.long(),
        nears,
        fars,
    )


def _of_each(values: Tensor | None, shape: torch.Size, device: torch.device | str) -> Tensor | None:
    """[*, 1] float32 of a value for each ray, or of one for all."""
    if values is None:
        return None
    values = values.to(device).float()
    if values.shape == shape:  # without the last dimension, unless it is a single ray's
        values = values[..., None]
    return values.reshape(1).expand(*shape, 1) if values.numel() == 1 else values.expand(*shape, 1)
