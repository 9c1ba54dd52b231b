"""Rendering a set of Gaussians: their colours as seen from where the rays start, then the caster. Knows no nerfstudio.

gaussians, basis = cloud.gaussians(), cloud.color_basis()
outputs = render(gaussians, basis, image_rays(lens, camera_to_world), CastSettings(step=0.01, density_threshold=0.1))
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ns_support.kernels.backend import triton_module
from ns_support.lenses.lens import Lens, in_world, pixel_centers
from raygauss_ns.casting import Backend, CastSettings, Gaussians, RayOutputs, Rays, cast
from raygauss_ns.casting.motion import moved_against, seen_from, turned_with
from raygauss_ns.color import ColorBasis, colors_reference, view_colors
from raygauss_ns.gaussians.projection import rows_in_cone

_MANY = 0.7
"""Fraction of the Gaussians from which copying those that rays may meet costs more than it saves."""


class Viewpoint(NamedTuple):
    """Rays that see the same colour of a Gaussian.

    Attributes:
        rows: [r] int64, which rays; None: all.
        center: [3] the point that they start from; None: they start infinitely far away.
        direction: [3] the direction that they share if they start infinitely far away.
    """

    rows: Tensor | None
    center: Tensor | None
    direction: Tensor | None = None


def viewpoints(rays: Rays, one_origin: bool = False) -> Iterator[Viewpoint]:
    """Divide rays into those of one viewpoint each: a pinhole's rays are one, parallel rays are one.

    Args:
        rays: R rays.
        one_origin: whether they are known to start in one point. Otherwise the host waits for a GPU to tell.
    """
    origins, directions = rays.origins, rays.directions
    if len(origins) == 0:
        yield Viewpoint(None, origins.new_zeros(3))
    elif one_origin or bool((origins == origins[0]).all()):
        yield Viewpoint(None, origins[0])
    elif bool((directions == directions[0]).all()):
        yield Viewpoint(None, None, directions[0])
    else:
        centers, group = torch.unique(origins, dim=0, return_inverse=True)
        rows = torch.argsort(group, stable=True).split(torch.bincount(group).tolist())
        for center, members in zip(centers, rows, strict=True):
            yield Viewpoint(members, center)


def render(
    gaussians: Gaussians,
    basis: ColorBasis,
    rays: Rays,
    settings: CastSettings,
    *,
    motion: Tensor | None = None,
    one_origin: bool = False,
    backend: Backend = "auto",
) -> RayOutputs:
    """Cast rays at Gaussians whose colour depends on where it is seen from.

    Args:
        gaussians: the N Gaussians.
        basis: what their colours are computed from; all of it counts.
        rays: R rays.
        settings: how they are sampled.
        motion: [6] of value 0 (`casting.motion`), if the pose that the rays belong to is to have a gradient.
        one_origin: whether the rays are known to start in one point (`viewpoints`).
        backend: as for `cast`.

    Returns:
        Colour without a background, transmittance and depth, differentiable in the Gaussians, the basis and the motion.
    """
    rows, parts = [], []
    for viewpoint in viewpoints(rays, one_origin):
        if viewpoint.rows is None and viewpoint.center is not None and len(rays.origins) > 0:
            gaussians, basis = _met(gaussians, basis, viewpoint.center, rays.directions, settings)
        colors = _colors(gaussians, basis, viewpoint, settings, motion)
        moved = gaussians if motion is None else moved_against(gaussians, motion)
        if viewpoint.rows is None:
            return cast(moved, colors, rays, settings, backend=backend)
        rows.append(viewpoint.rows)
        parts.append(cast(moved, colors, rays.select(viewpoint.rows), settings, backend=backend))
    back = torch.argsort(torch.cat(rows))
    return RayOutputs(*(torch.cat(fields)[back] for fields in zip(*parts, strict=True)))


def _colors(
    gaussians: Gaussians, basis: ColorBasis, viewpoint: Viewpoint, settings: CastSettings, motion: Tensor | None
) -> Tensor:
    """Colours [N, 3] of Gaussians as one viewpoint sees them."""
    means = gaussians.means
    if viewpoint.center is not None:
        means = means if motion is None else seen_from(means, viewpoint.center, motion)
        alive = None if means.is_cuda else gaussians.densities.detach() > settings.density_threshold
        return view_colors(basis, means, viewpoint.center, alive)
    assert viewpoint.direction is not None
    direction = viewpoint.direction if motion is None else turned_with(viewpoint.direction, motion)
    return colors_reference(basis, direction)


def _met(
    gaussians: Gaussians, basis: ColorBasis, center: Tensor, directions: Tensor, settings: CastSettings
) -> tuple[Gaussians, ColorBasis]:
    """Those that the rays may meet. On a GPU all: the host would have to wait for their number."""
    if gaussians.means.device.type != "cpu":
        return gaussians, basis
    rows = rows_in_cone(gaussians, center, directions, settings.density_threshold)
    if rows is None or len(rows) > _MANY * len(gaussians.means):
        return gaussians, basis
    # Indexing would do the same, but its gradient sorts the rows.
    gaussians = Gaussians(*(value.index_select(0, rows) for value in gaussians))
    return gaussians, ColorBasis(*(value.index_select(0, rows) for value in basis))


def over(outputs: RayOutputs, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lay a rendering over a background.

    Args:
        outputs: the rendering of R rays.
        background: [R, 3] what is behind each ray.

    Returns:
        Image [R, 3]; accumulation 1 - T [R]; expected depth of what is seen [R] (length).
    """
    rgb, transmittance, depth = outputs
    plain = not background.requires_grad and all(tensor.dtype == torch.float32 for tensor in (*outputs, background))
    if rgb.is_cuda and plain:
        gpu = triton_module("raygauss_ns.gaussians.gpu", "rendering on a GPU")
        image, accumulation, mean_depth = gpu.Over.apply(rgb, transmittance, depth, background)
        return image, accumulation, mean_depth
    accumulation = 1.0 - transmittance
    return rgb + transmittance[:, None] * background, accumulation, depth / accumulation.clamp_min(1e-6)


def image_rays(lens: Lens, camera_to_world: Tensor, near: float = 0.0) -> Rays:
    """The rays through the centres of an image's pixels, row by row.

    Args:
        lens: of the camera.
        camera_to_world: [3, 4] its pose; it looks along its -z axis.
        near: distance at which rays begin, >= 0 (length).

    Returns:
        height * width rays, float32; those of pixels that the lens has no ray for are empty.
    """
    width, height = int(lens.width), int(lens.height)
    local = lens.rays(*pixel_centers((0, 0, height, width), camera_to_world.device))
    origins, directions, exist = in_world(local, camera_to_world.float())
    assert origins is not None
    origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
    nears = torch.full_like(directions[:, 0], near)
    fars = torch.full_like(nears, torch.inf)
    if exist is not None:
        fars = torch.where(exist.reshape(-1), fars, nears)
    return Rays(origins, directions, nears, fars, width)
