"""A lens of finite aperture before the exact rays of any camera: depth of field.

A pixel's rays start in different points of the lens and meet again where the pixel's ordinary ray is in focus (Cook,
Porter and Carpenter 1984). What is at the distance z instead of the focus distance f is spread over

    aperture |z - f| / f * (pixels per unit of u) / z

pixels, the diameter of its circle of confusion.

    perspective, orthophoto   f and z are depths along the axis: the plane at depth f is sharp, and the lens is a disc
                              parallel to it
    all others                f and z are distances along each ray: the sphere of radius f about the camera is sharp,
                              and every ray sees a disc perpendicular to itself

No flat disc is perpendicular to all rays of a panorama. A ball of radius r whose points have the density
1 / (pi^2 r^2 sqrt(r^2 - x^2)) at the distance x from its centre does the same: seen from any side, they are spread
evenly over a disc. (They are the points of the unit sphere of four dimensions without their fourth coordinate.) A point
that is nearer by x than the disc scales the spread by f / (f - x).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ns_support.lenses.lens import LensType, LocalRays

_FLAT = {LensType.PERSPECTIVE, LensType.ORTHOPHOTO}
"""Lenses with a plane in focus."""
_GOLDEN = 2 / (1 + math.sqrt(5))
_PLASTIC = 1.324717957244746
"""The real root of x^3 = x + 1; its powers have the part in two dimensions that the golden ratio has in one."""


class LensPoint(NamedTuple):
    """A point of a lens, in camera space.

    Attributes:
        offset: x, y, z from where the ordinary rays start (scene units).
        focus: distance that is in focus (scene units).
    """

    offset: tuple[float, float, float]
    focus: float


def lens_points(kind: LensType, aperture: float, focus: float, count: int, seed: int = 0) -> list[LensPoint]:
    """Points that are evenly spread over a lens; the same arguments always give the same points.

    On a disc they are a spiral of Fibonacci's lattice, in a ball a lattice with the plastic number's powers.

    Args:
        kind: of the camera's lens.
        aperture: diameter of the lens, > 0 (scene units).
        focus: distance that is in focus, > aperture / 2 (scene units).
        count: number of points, >= 1.
        seed: of the angles that the spiral or the lattice is turned by.
    """
    first, second = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    i = torch.arange(count, dtype=torch.float64)
    even, radius = (i + 0.5) / count, 0.5 * aperture
    if kind in _FLAT:
        angle = 2 * math.pi * (i * _GOLDEN + first)
        r = even.sqrt()
        offsets = torch.stack([r * angle.cos(), r * angle.sin(), torch.zeros_like(r)], -1)
    else:
        angle, other = (2 * math.pi * (i / _PLASTIC**k + turn) for k, turn in ((1, first), (2, second)))
        r = (1 - even).sqrt()
        offsets = torch.stack([r * angle.cos(), r * angle.sin(), even.sqrt() * other.sin()], -1)
    return [LensPoint((x, y, z), focus) for x, y, z in (radius * offsets).tolist()]


def through_lens(kind: LensType, rays: LocalRays, point: LensPoint) -> LocalRays:
    """The rays of the same pixels through a point of the lens.

    Args:
        kind: of the camera's lens.
        rays: of the pinhole, or whatever the camera is, in camera space.
        point: where they pass through the lens.

    Returns:
        Rays that meet the given ones at the distance in focus. Their origins are [3] if they all start in one point.
    """
    offset = rays.directions.new_tensor(point.offset)
    # Relative to each ray's own origin, so that the rays of an orthophoto stay parallel to the last bit.
    meeting = rays.directions * point.focus
    if kind in _FLAT:
        meeting = meeting / -rays.directions[..., 2:]
    directions: Tensor = torch.nn.functional.normalize(meeting - offset, dim=-1)
    return LocalRays(offset if rays.origins is None else rays.origins + offset, directions, rays.exist)
