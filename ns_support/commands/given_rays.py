"""Normalises ray bundles made elsewhere, for models that need single precision, unit directions and both ends.

nerfstudio's commands build some ray bundles by hand, with only the fields that its own models use. `ns-export
pointcloud` casts a probe ray along (1, 1, 1). `ns-render --render-nearest-camera` casts one that ends at the integer
100, and whose direction is zero if a rendered camera coincides with a training camera.
"""

from __future__ import annotations

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from ns_support.data.ray_table import UnitRays


def unit_directions(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of length 1.

    Args:
        directions: [*, 3] numbers of any type.

    Returns:
        [*, 3] float32: directions of unit length (to 1e-6) are unchanged, and invalid ones (of length 0, or not finite)
        become +z; [*, 1] bool, which directions are valid.
    """
    exact = directions.double()
    # Divided by the largest component first, since squares may overflow or underflow.
    largest = exact.abs().amax(-1, keepdim=True)
    somewhere = exact.isfinite().all(-1, keepdim=True) & (largest > 0)
    up = torch.eye(3, dtype=exact.dtype, device=exact.device)[2]  # no copy, for which the host would wait
    exact = torch.where(somewhere, exact, up)
    length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    scaled = torch.where(somewhere, exact / largest, up)
    turned = torch.where((length - 1).abs() < 1e-6, exact, torch.nn.functional.normalize(scaled, dim=-1))
    return turned.float(), somewhere


def given_rays(rays: RayBundle, device: torch.device | str) -> RayBundle:
    """The same rays in the form that the models take.

    Args:
        rays: [*] rays of any dtype, with directions of any length, with or without nears and fars ([*], [*, 1] or one
            for all; distances in scene units, independent of the directions' length).
        device: of the result.

    Returns:
        A bundle of shape [*] with float32 origins, unit directions, pixel areas [*, 1] and, if given, camera indices
        [*, 1] int64. Nears and fars [*, 1] are present if the bundle had either, if a ray has no valid direction (such
        a ray ends where it begins), and always on a GPU. Times and metadata are dropped, as no model here uses them.

    Raises:
        ValueError: origins and directions do not fit together, or the last dimension is not 3.
    """
    if isinstance(rays, UnitRays) and rays.origins.device == torch.device(device):
        return rays
    origins, directions = torch.broadcast_tensors(rays.origins.to(device), rays.directions.to(device))
    if origins.shape[-1:] != (3,):
        raise ValueError(f"origins and directions must be [*, 3], got {list(rays.origins.shape)}")
    shape = origins.shape[:-1]
    origins = origins.float()
    directions, usable = unit_directions(directions)
    usable &= origins.isfinite().all(-1, keepdim=True)
    nears, fars = (_of_each(bound, shape, device) for bound in (rays.nears, rays.fars))
    # On a GPU, for whose answer the host would wait, they are always there.
    if nears is not None or fars is not None or usable.is_cuda or not bool(usable.all()):
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
    if values.shape == shape:  # the last dimension is missing, unless this is a single ray
        values = values[..., None]
    return values.reshape(1).expand(*shape, 1) if values.numel() == 1 else values.expand(*shape, 1)
