"""Numba kernels for marching and compositing on the CPU. Each thread takes a chunk of the rays.

No fast-math: results must not depend on the machine, and a voxel is decided by the same float32 operations as in the
reference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

import ns_support.kernels.compiling  # noqa: F401 - tells the user when kernels are compiled
from ns_support.concurrency.threads import run_on_threads
from ns_support.kernels.arrays import as_array

if TYPE_CHECKING:
    from hardmine_ns.marching.lattice import RayLattices
    from hardmine_ns.marching.occupancy import OccupancyGrid

Array = npt.NDArray[Any]

_FAR_AWAY = 1e30
_SLACK = 0.02
"""Steps by which a jump over an empty voxel falls short, so that rounding never skips a midpoint beyond it."""
_BLOCK = 8
"""Voxels along the edge of a block: an empty block is left in one jump."""
_RAYS_PER_PART = 128
"""Rays that are marched together; several parts for each thread, because rays differ in length."""
_RAYS_PER_TURN = 64
"""Rays that a thread takes at a time: threads stay busy although rays differ in length."""

_jit = njit(nogil=True, cache=True, error_model="numpy")


class _Grid(NamedTuple):
    center: Array
    half: Array
    binaries: Array
    """[levels, r, r, r] bool."""
    blocks: Array
    """[levels, r / 8, r / 8, r / 8] bool: whether any of 8 x 8 x 8 voxels is occupied; of size 0 where unused."""


class _Lattice(NamedTuple):
    """A ray's lattice, in `rays.py`'s notation: t_0, dt, cone, k0 and t_k0."""

    start: np.float32
    step: np.float32
    cone: float
    switch: float
    t_switch: float


@_jit
def _lattice(start: np.float32, step: np.float32, cone: float) -> _Lattice:
    t: float = float(start)
    dt, switch = float(step), 0.0
    if cone > 0.0:
        switch = max(math.floor((dt / cone - t) / dt) + 1.0, 0.0)
    return _Lattice(start, step, cone, switch, t + switch * dt)


@_jit
def _first_midpoint_at(t: float, lattice: _Lattice) -> int:
    """The least k whose midpoint is at t or behind it, or a little less."""
    steps: float = (t - float(lattice.start)) / float(lattice.step) - 0.5
    if lattice.cone > 0.0 and math.ceil(steps - _SLACK) >= lattice.switch:
        growth = max(t / (lattice.t_switch * (1.0 + 0.5 * lattice.cone)), 1.0)
        steps = lattice.switch + math.log(growth) / math.log1p(lattice.cone)
    return max(math.ceil(steps - _SLACK), 0)


@_jit
def _edge(k: int, lattice: _Lattice) -> np.float32:
    if lattice.cone > 0.0 and k > lattice.switch:
        return np.float32(lattice.t_switch * (1.0 + lattice.cone) ** (k - lattice.switch))
    return np.float32(lattice.start + np.float32(k) * lattice.step)


@_jit
def _clip(o: Array, d: Array, center: Array, half: Array, reach: float, a: Array, b: Array) -> tuple[float, float]:
    """Where a ray enters and leaves a box of `reach` half extents.

    Fills `a` and `b` [3]: along each axis the boundary at u, in half extents from the centre, is crossed at a + u b.
    """
    enter, leave = 0.0, _FAR_AWAY
    for i in range(3):
        a[i], b[i] = _FAR_AWAY, 0.0
        if d[i] != 0.0:
            a[i] = (float(center[i]) - float(o[i])) / float(d[i])
            b[i] = float(half[i]) / float(d[i])
            enter = max(enter, a[i] - abs(b[i]) * reach)
            leave = min(leave, a[i] + abs(b[i]) * reach)
        elif abs(o[i] - center[i]) >= half[i] * reach:
            leave = -1.0
    return enter, leave


@_jit
def _crossing(x: int, y: int, z: int, width: float, scale: float, a: Array, b: Array) -> float:
    """Where a ray leaves the voxel (x, y, z) of a box whose voxels are `width` wide in its own half extents."""
    tx = a[0] + ((x + (b[0] > 0.0)) * width - 1.0) * scale * b[0]
    ty = a[1] + ((y + (b[1] > 0.0)) * width - 1.0) * scale * b[1]
    tz = a[2] + ((z + (b[2] > 0.0)) * width - 1.0) * scale * b[2]
    return min(tx, ty, tz)


@_jit
def _walk(
    o: Array,
    d: Array,
    lattice: _Lattice,
    grid: _Grid,
    k: int,
    far: np.float32,
    leave: float,
    a: Array,
    b: Array,
    t_starts: Array,
    t_ends: Array,
    count: int,
) -> int:
    """Walk a ray from its k-th interval on, append those in occupied voxels to the outputs, return their new length."""
    binaries, blocks = grid.binaries, grid.blocks
    levels, r = binaries.shape[0], binaries.shape[1]
    half_step, one, resolution = np.float32(0.5), np.float32(1.0), np.float32(r)
    # Out of their arrays, which the compiler must suspect each write to the outputs of changing.
    ox, oy, oz, dx, dy, dz = o[0], o[1], o[2], d[0], d[1], d[2]
    cx, cy, cz = grid.center[0], grid.center[1], grid.center[2]
    hx, hy, hz = one / grid.half[0], one / grid.half[1], one / grid.half[2]
    at, t1 = k, _edge(k, lattice)
    while True:
        t0 = t1 if k == at else _edge(k, lattice)
        at, t1 = k + 1, _edge(k + 1, lattice)
        middle = (t0 + t1) * half_step
        # The voxel decides what is inside the box; `leave` only ends the walk, with a step to spare for rounding.
        if middle >= far or t0 > leave:
            return count
        ux, uy, uz = (ox + middle * dx - cx) * hx, (oy + middle * dy - cy) * hy, (oz + middle * dz - cz) * hz
        largest = max(abs(ux), abs(uy), abs(uz))
        level, shrink = 0, one
        while level < levels and largest * shrink >= one:
            level += 1
            shrink *= half_step
        k += 1
        if level == levels:
            continue
        x = min(max(int((ux * shrink * half_step + half_step) * resolution), 0), r - 1)
        y = min(max(int((uy * shrink * half_step + half_step) * resolution), 0), r - 1)
        z = min(max(int((uz * shrink * half_step + half_step) * resolution), 0), r - 1)
        if binaries[level, x, y, z]:
            t_starts[count], t_ends[count] = t0, t1
            count += 1
            continue
        width, scale = 2.0 / r, 1.0 / float(shrink)
        if blocks.size and not blocks[level, x // _BLOCK, y // _BLOCK, z // _BLOCK]:
            t = _crossing(x // _BLOCK, y // _BLOCK, z // _BLOCK, width * _BLOCK, scale, a, b)
        else:
            t = _crossing(x, y, z, width, scale, a, b)
        k = max(k, _first_midpoint_at(t, lattice))


@_jit
def _march_part(
    origins: Array,
    directions: Array,
    starts: Array,
    fars: Array,
    grid: _Grid,
    step: np.float32,
    cone: float,
    first: int,
    last: int,
    counts: Array,
) -> tuple[Array, Array]:
    """March the rays [first, last) one after the other; fills their `counts` and returns their intervals."""
    a, b = np.empty(3), np.empty(3)
    room = 64 * (last - first)
    t_starts, t_ends = np.empty(room, np.float32), np.empty(room, np.float32)
    total = 0
    reach = 2.0 ** (grid.binaries.shape[0] - 1)
    for ray in range(first, last):
        o, d = origins[ray], directions[ray]
        enter, leave = _clip(o, d, grid.center, grid.half, reach, a, b)
        nearest = max(enter, float(starts[ray]))
        if leave <= nearest or fars[ray] <= nearest:
            continue
        lattice = _lattice(starts[ray], step, cone)
        k = _first_midpoint_at(enter, lattice)
        most = _first_midpoint_at(min(leave, float(fars[ray])), lattice) - k + 3
        if total + most > room:
            room = max(2 * room, total + most)
            wider_starts, wider_ends = np.empty(room, np.float32), np.empty(room, np.float32)
            wider_starts[:total], wider_ends[:total] = t_starts[:total], t_ends[:total]
            t_starts, t_ends = wider_starts, wider_ends
        after = _walk(o, d, lattice, grid, k, fars[ray], leave, a, b, t_starts, t_ends, total)
        counts[ray] = after - total
        total = after
    return t_starts[:total], t_ends[:total]


@_jit
def _occupied_blocks(words: Array, blocks: Array) -> None:
    """`_Grid.blocks` from the grid's rows of 8 voxels, read as 64-bit words [levels, r, r, r / 8]."""
    for level in range(words.shape[0]):
        for x in range(words.shape[1]):
            for y in range(words.shape[2]):
                for z in range(words.shape[3]):
                    if words[level, x, y, z]:
                        blocks[level, x // _BLOCK, y // _BLOCK, z] = True


def _grid(grid: OccupancyGrid) -> _Grid:
    binaries = as_array(grid.binaries)
    r = grid.resolution
    # With several levels the inner box, a quarter of the edge from each side, must end on a block's face.
    fits = r % (_BLOCK if grid.levels == 1 else 4 * _BLOCK) == 0
    blocks = np.zeros((grid.levels, *[r // _BLOCK if fits else 0] * 3), np.bool_)
    if fits:
        # At each call: a copy kept beside the grid could go stale, and this takes 0.3 ms for 128^3 voxels.
        _occupied_blocks(binaries.view(np.uint64), blocks)
    return _Grid(as_array(grid.center), as_array(grid.half_extent), binaries, blocks)


def march(rays: RayLattices, grid: OccupancyGrid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `rays.march_rays`; the jitter is already in the rays' starts.

    Returns:
        (t_starts [M], t_ends [M], ray_indices [M] int64, offsets [R + 1] int64).
    """
    num_rays = len(rays.origins)
    settings = (*map(as_array, rays[:4]), _grid(grid), np.float32(rays.step_size), float(rays.cone_angle))
    counts = np.zeros(num_rays, np.int64)
    borders = range(0, num_rays, _RAYS_PER_PART)
    parts = [(np.empty(0, np.float32), np.empty(0, np.float32))] * (len(borders) + 1)

    def worker(thread: int, threads: int) -> None:
        for part in range(thread, len(borders), threads):
            first = borders[part]
            parts[part] = _march_part(*settings, first, min(first + _RAYS_PER_PART, num_rays), counts)

    run_on_threads(worker)
    t_starts, t_ends = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    ray_indices = np.repeat(np.arange(num_rays), counts)
    offsets = np.zeros(num_rays + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return tuple(torch.from_numpy(x) for x in (t_starts, t_ends, ray_indices, offsets))  # type: ignore[return-value]
