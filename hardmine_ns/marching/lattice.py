"""The lattice of interval edges along a ray, and the part of it that lies in the grid's boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hardmine_ns.marching.occupancy import OccupancyGrid


class RayLattices(NamedTuple):
    """R rays, and the lattice of intervals on each.

    Attributes:
        origins: [R, 3] float32.
        directions: [R, 3] float32, of unit length.
        starts: [R] distances t_0 at which the lattices start.
        fars: [R] distances behind which no midpoint lies.
        step_size: dt > 0, the smallest step (scene units).
        cone_angle: growth of the step with distance, >= 0 (dimensionless).
    """

    origins: Tensor
    directions: Tensor
    starts: Tensor
    fars: Tensor
    step_size: float
    cone_angle: float


def lattice_range(rays: RayLattices, grid: OccupancyGrid) -> tuple[Tensor, Tensor]:
    """Index of the first interval of each ray that may be in the outermost box, and how many may: [R] int64."""
    origins, directions, starts, fars, step_size, cone_angle = rays
    enter, leave = box_interval(origins, directions, grid)
    # One step of slack on both sides: the midpoint decides, and these bounds are rounded.
    first = (lattice_index(enter, starts, step_size, cone_angle) - 1).clamp(min=0)
    count = lattice_index(torch.minimum(leave, fars), starts, step_size, cone_angle) + 2 - first
    hit = torch.minimum(leave, fars) > torch.maximum(enter, starts)
    return first, torch.where(hit, count, 0).clamp(min=0)


def box_interval(origins: Tensor, directions: Tensor, grid: OccupancyGrid) -> tuple[Tensor, Tensor]:
    """Distances [R] at which rays enter and leave the outermost box; the second is smaller where a ray misses it."""
    reach = grid.half_extent * 2.0 ** (grid.levels - 1)
    parallel = directions == 0
    inverse = torch.where(parallel, 1.0, directions).reciprocal()
    low = (grid.center - reach - origins) * inverse
    high = (grid.center + reach - origins) * inverse
    outside = parallel & ((origins - grid.center).abs() >= reach)
    unbounded = torch.full_like(low, float("inf"))
    near = torch.where(parallel, -unbounded, torch.minimum(low, high)).masked_fill(outside, float("inf"))
    far = torch.where(parallel, unbounded, torch.maximum(low, high))
    return near.amax(-1), far.amin(-1)


def lattice_edge(k: Tensor, starts: Tensor, step_size: float, cone_angle: float) -> Tensor:
    """Edge t_k of the lattice, float32, for k int64 >= 0 and starts broadcast against it."""
    linear = starts + k.to(starts.dtype) * step_size
    if cone_angle == 0:
        return linear
    switch, t_switch = cone_switch(starts, step_size, cone_angle)
    grown = t_switch * (1.0 + cone_angle) ** (k - switch).clamp(min=0).to(torch.float64)
    return torch.where(k <= switch, linear, grown.to(starts.dtype))


def cone_switch(starts: Tensor, step_size: float, cone_angle: float) -> tuple[Tensor, Tensor]:
    """k0 and t_k0: where steps begin to grow. int64 and float64."""
    start = starts.to(torch.float64)
    switch = (torch.floor((step_size / cone_angle - start) / step_size) + 1).clamp(min=0)
    return switch.to(torch.int64), start + switch * step_size


def lattice_index(t: Tensor, starts: Tensor, step_size: float, cone_angle: float) -> Tensor:
    """The k >= 0 whose interval holds t, up to rounding; int64."""
    start = starts.to(torch.float64)
    distance = t.to(torch.float64).clamp(-1e9, 1e9)
    k = torch.floor((distance - start) / step_size)
    if cone_angle > 0:
        switch, t_switch = cone_switch(starts, step_size, cone_angle)
        growth = torch.log((distance / t_switch).clamp(min=1.0)) / torch.log1p(torch.tensor(cone_angle).double())
        k = torch.where(k < switch, k, switch + torch.floor(growth))
    return k.clamp(min=0).to(torch.int64)
