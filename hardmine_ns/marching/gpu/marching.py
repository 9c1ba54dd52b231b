"""Ray marching on a GPU: Triton kernels, a program a ray, 128 points of its lattice at a time.

Two passes over the same points: the first counts what each ray keeps, the second writes it. The host waits once, for
the number of samples, which is the size of the result. Every float32 operation is the reference's, in its order and
without fused multiply-adds, so that both keep the same samples.

Which samples become one (`merging`) depends on those before it on the ray: a program goes along it, one by one.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hardmine_ns.marching.samples import PackedSamples
from ns_support.kernels import triton_types as ty

if TYPE_CHECKING:
    from hardmine_ns.marching.lattice import RayLattices
    from hardmine_ns.marching.occupancy import OccupancyGrid

_BLOCK = 128
_OPTIONS: dict[str, Any] = {"BLOCK": _BLOCK, "num_warps": 1, "enable_fp_fusion": False}


@triton.jit
def edge(k: ty.Lanes, lattice: ty.Fields, CONE: tl.constexpr) -> ty.Lanes:
    """Edge t_k of the lattice; `rays.lattice_edge`."""
    start, step, switch, t_switch, log2_growth = lattice
    linear = start + k.to(tl.float32) * step
    if CONE:
        # In float64, as in the reference: the exponent multiplies every rounding.
        beyond = tl.maximum(k - switch, 0).to(tl.float64)
        grown = (t_switch * tl.exp2(beyond * log2_growth)).to(tl.float32)
        linear = tl.where(k <= switch, linear, grown)
    return linear


@triton.jit
def _unit(o: ty.Scalar, d: ty.Scalar, middle: ty.Lanes, box: ty.Pointer) -> ty.Lanes:
    """A coordinate of the points, in half extents of the innermost box from its centre."""
    return (o + middle * d - tl.load(box)) * tl.load(box + 3)


@triton.jit
def _voxel(unit: ty.Lanes, shrink: ty.Lanes, resolution: ty.Scalar) -> ty.Lanes:
    scaled = (unit * shrink * 0.5 + 0.5) * resolution.to(tl.float32)
    inside = tl.minimum(tl.maximum(scaled, 0.0), (resolution - 1).to(tl.float32))
    return inside.to(tl.int64)


@triton.jit
def located(middle: ty.Lanes, ray: ty.Fields, grid: ty.Fields) -> ty.Fields:
    """Cells int64 of points on a ray, and which of them are inside the grid; `occupancy.locate`."""
    origin, direction = ray
    box, _, levels, resolution = grid
    x = _unit(tl.load(origin), tl.load(direction), middle, box)
    y = _unit(tl.load(origin + 1), tl.load(direction + 1), middle, box + 1)
    z = _unit(tl.load(origin + 2), tl.load(direction + 2), middle, box + 2)
    reach = tl.maximum(tl.abs(x), tl.maximum(tl.abs(y), tl.abs(z)))
    level = tl.zeros_like(middle).to(tl.int64)
    shrink = tl.zeros_like(middle) + 1.0
    for _ in range(levels):
        outside = reach * shrink >= 1.0  # of the boxes so far: each is twice the one before
        level += outside.to(tl.int64)
        shrink = tl.where(outside, shrink * 0.5, shrink)
    row = (level * resolution + _voxel(x, shrink, resolution)) * resolution + _voxel(y, shrink, resolution)
    return row * resolution + _voxel(z, shrink, resolution), level < levels


@triton.jit
def occupied(middle: ty.Lanes, exists: ty.Lanes, ray: ty.Fields, grid: ty.Fields) -> ty.Lanes:
    """Which points lie in an occupied voxel."""
    _, binaries, _, _ = grid
    cell, inside = located(middle, ray, grid)
    return tl.load(binaries + cell, mask=exists & inside, other=0) != 0


@triton.jit(do_not_specialize=["levels", "resolution"])
def march_kernel(
    origins: ty.Pointer,
    directions: ty.Pointer,
    starts: ty.Pointer,
    fars: ty.Pointer,
    firsts: ty.Pointer,
    lasts: ty.Pointer,
    switches: ty.Pointer,
    t_switches: ty.Pointer,
    log2_growth: ty.Pointer,
    box: ty.Pointer,
    binaries: ty.Pointer,
    levels: ty.Scalar,
    resolution: ty.Scalar,
    step: ty.Scalar,
    counts: ty.Pointer,
    offsets: ty.Pointer,
    t_starts: ty.Pointer,
    t_ends: ty.Pointer,
    ray_indices: ty.Pointer,
    CONE: tl.constexpr,
    WRITE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """March one ray: store how many samples it keeps, or, where they are to go is known, the samples."""
    ray = tl.program_id(0).to(tl.int64)
    lattice = (tl.load(starts + ray), step, 0, 0.0, 0.0)
    if CONE:
        growth = tl.load(log2_growth)
        lattice = (tl.load(starts + ray), step, tl.load(switches + ray), tl.load(t_switches + ray), growth)
    far = tl.load(fars + ray)
    k = tl.load(firsts + ray)
    last = tl.load(lasts + ray)
    found = tl.load(offsets + ray)
    while k < last:
        steps = k + tl.arange(0, BLOCK)
        t0 = edge(steps, lattice, CONE)
        t1 = edge(steps + 1, lattice, CONE)
        middle = (t0 + t1) * 0.5
        exists = (steps < last) & (middle < far)
        kept = occupied(
            middle,
            exists,
            (origins + ray * 3, directions + ray * 3),
            (box, binaries, levels, resolution),
        )
        place = found + tl.cumsum(kept.to(tl.int64), 0) - 1
        if WRITE:
            tl.store(t_starts + place, t0, mask=kept)
            tl.store(t_ends + place, t1, mask=kept)
            tl.store(ray_indices + place, ray + tl.zeros([BLOCK], tl.int64), mask=kept)
        found += tl.sum(kept.to(tl.int64), 0)
        k += BLOCK
    if not WRITE:
        tl.store(counts + ray, found)


def march(
    rays: RayLattices, grid: OccupancyGrid, first: Tensor, last: Tensor, switch: tuple[Tensor, Tensor]
) -> PackedSamples:
    """See `rays.march_rays`; the jitter is already in the rays' starts.

    Args:
        rays: R rays, float32.
        grid: on the same device.
        first: [R] int64, lattice index from which on a ray is looked at.
        last: [R] int64, index at which that ends.
        switch: k0 [R] int64 and t_k0 [R] float64, where steps begin to grow; of no use without a cone angle.
    """
    origins, cone_angle, num_rays = rays.origins, rays.cone_angle, len(rays.origins)
    offsets = torch.zeros(num_rays + 1, dtype=torch.int64, device=origins.device)
    counts = torch.zeros_like(offsets[1:])
    box = torch.cat([grid.center, grid.half_extent.reciprocal()])
    growth = torch.full((1,), math.log2(1.0 + cone_angle), dtype=torch.float64, device=origins.device)
    lattices = [tensor.contiguous() for tensor in (*rays[:4], first, last, *switch)]
    scene = (growth, box, grid.binaries.contiguous().view(torch.uint8), grid.levels, grid.resolution, rays.step_size)

    def launch(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, write: bool) -> None:
        if num_rays:
            march_kernel[(num_rays,)](
                *lattices, *scene, counts, offsets, t_starts, t_ends, ray_indices,
                CONE=cone_angle > 0, WRITE=write, **_OPTIONS,
            )  # fmt: skip

    empty = origins.new_empty(0)
    launch(empty, empty, counts[:0], write=False)
    torch.cumsum(counts, 0, out=offsets[1:])
    # Both at once: the host waits for what it reads first.
    total, longest = torch.stack([offsets[-1], counts.amax()]).tolist() if num_rays else (0, 0)
    t_starts, t_ends = origins.new_empty(total), origins.new_empty(total)
    ray_indices = torch.empty(total, dtype=torch.int64, device=origins.device)
    launch(t_starts, t_ends, ray_indices, write=True)
    return PackedSamples(t_starts, t_ends, ray_indices, offsets, longest=longest)


@triton.jit(do_not_specialize=["limit", "most"])
def merge_kernel(
    offsets: ty.Pointer,
    t_starts: ty.Pointer,
    t_ends: ty.Pointer,
    thickness: ty.Pointer,
    firsts: ty.Pointer,
    limit: ty.Scalar,
    most: ty.Scalar,
) -> None:
    """Mark the first sample of each group on one ray."""
    ray = tl.program_id(0).to(tl.int64)
    i = tl.load(offsets + ray)
    last = tl.load(offsets + ray + 1)
    # The least float as the end of what came before: nothing begins there.
    end = limit * 0.0 - 3.0e38
    total = limit * 0.0
    count = most * 0
    while i < last:
        x = tl.load(thickness + i)
        joins = (tl.load(t_starts + i) == end) & (count < most) & (total + x <= limit)
        tl.store(firsts + i, tl.where(joins, 0, 1).to(tl.uint8))
        total = tl.where(joins, total + x, x)
        count = tl.where(joins, count + 1, 1)
        end = tl.load(t_ends + i)
        i += 1


def starts_of_groups(samples: PackedSamples, thickness: Tensor, limit: float, most: int) -> Tensor:
    """See `reference.starts_of_groups_torch`, which defines the result."""
    firsts = torch.empty(len(samples), dtype=torch.uint8, device=thickness.device)
    spans = (samples.offsets, samples.t_starts, samples.t_ends, thickness, firsts)
    if samples.num_rays:
        tensors = [tensor.contiguous() for tensor in spans]
        merge_kernel[(samples.num_rays,)](*tensors, limit, most, num_warps=1, enable_fp_fusion=False)
    return firsts.view(torch.bool)
