"""Surface normals from distances along rays, for any model that computes a distance for arbitrary rays."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DistanceOf = Callable[[Tensor, Tensor], Tensor]
"""Maps origins [n R, 3] and directions [n R, 3], n copies of the R rays one after another, to distances [n R]."""


def surface_normals(distance_of: DistanceOf, origins: Tensor, directions: Tensor, shift: float) -> Tensor:
    """Normals of the surface given by the expected distance D, oriented towards the rays' origins.

    Each ray is shifted sideways; its neighbours in the image are not used. With u, v orthogonal to the direction d, the
    point o + su + tv + D(s, t) d has the tangents u + D_s d and v + D_t d, whose cross product is parallel to

        n = D_s u + D_t v - d,    D_s = (D(o + hu) - D(o - hu)) / 2h,  D_t likewise

    So this works for any set of rays (`ns-export` draws pixels at random), and silhouettes do not bleed into their
    neighbours.

    Args:
        distance_of: computes the distance along rays; called once, with four times the R rays.
        origins: [R, 3].
        directions: [R, 3] of unit length.
        shift: h > 0 (scene units); the surface is averaged over about 2h.

    Returns:
        [R, 3] of unit length; -d if a distance is not finite.
    """
    u, v = _at_right_angles(directions)
    moved = torch.cat([origins + shift * u, origins - shift * u, origins + shift * v, origins - shift * v])
    ahead_u, behind_u, ahead_v, behind_v = distance_of(moved, directions.repeat(4, 1)).chunk(4)
    slope_u, slope_v = (ahead_u - behind_u) / (2 * shift), (ahead_v - behind_v) / (2 * shift)
    normals = slope_u[:, None] * u + slope_v[:, None] * v
    normals = torch.where(normals.isfinite(), normals, 0.0) - directions
    return torch.nn.functional.normalize(normals, dim=-1)


def normal_picture(normals: Tensor, accumulation: Tensor) -> Tensor:
    """Normals as colours in [0, 1], (n + 1) / 2, as nerfstudio's exporters expect; grey if the accumulation is <= 0.5.

    Args:
        normals: [R, 3] of unit length.
        accumulation: [R].
    """
    return torch.where(accumulation[:, None] > 0.5, 0.5 * normals + 0.5, 0.5).clamp(0.0, 1.0)


def _at_right_angles(directions: Tensor) -> tuple[Tensor, Tensor]:
    """For each direction [R, 3], two unit vectors orthogonal to it and to each other."""
    least = directions.abs().argmin(-1, keepdim=True)
    axis = torch.zeros_like(directions).scatter_(-1, least, 1.0)
    u = torch.nn.functional.normalize(torch.linalg.cross(directions, axis), dim=-1)
    return u, torch.linalg.cross(directions, u)
