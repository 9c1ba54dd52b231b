"""The Numba kernel that finds which samples become one; `merging` says by which rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

import ns_support.kernels.compiling  # noqa: F401 - tells the user when kernels are compiled
from ns_support.concurrency.threads import run_on_threads
from ns_support.kernels.arrays import as_array

if TYPE_CHECKING:
    from hardmine_ns.marching.occupancy import OccupancyGrid
    from hardmine_ns.marching.samples import PackedSamples

Array = npt.NDArray[Any]

_RAYS_PER_TURN = 64
"""Rays that a thread takes at a time: threads stay busy although rays differ in length."""

_jit = njit(nogil=True, cache=True, error_model="numpy")


@_jit
def _thickness_at(
    o: Array, d: Array, middle: np.float32, box: Array, thickness: Array, levels: int, r: int
) -> np.float32:
    """What the grid knows of a point of a ray; `occupancy.locate`. `box`: centre and reciprocal half extent [6]."""
    half, one, resolution = np.float32(0.5), np.float32(1), np.float32(r)
    ux = (o[0] + middle * d[0] - box[0]) * box[3]
    uy = (o[1] + middle * d[1] - box[1]) * box[4]
    uz = (o[2] + middle * d[2] - box[2]) * box[5]
    largest = max(abs(ux), abs(uy), abs(uz))
    level, shrink = 0, one
    while level < levels - 1 and largest * shrink >= one:
        level += 1
        shrink *= half
    x = min(max(int((ux * shrink * half + half) * resolution), 0), r - 1)
    y = min(max(int((uy * shrink * half + half) * resolution), 0), r - 1)
    z = min(max(int((uz * shrink * half + half) * resolution), 0), r - 1)
    return np.float32(thickness[((level * r + x) * r + y) * r + z])


@_jit
def _starts_share(
    rays: tuple[Array, Array],
    spans: tuple[Array, Array],
    offsets: Array,
    grid: tuple[Array, Array, int, int],
    numbers: tuple[np.float32, np.float32, np.float32, int],
    firsts: Array,
    thread: int,
    threads: int,
) -> None:
    """Mark the first sample of each group. `numbers`: 1 / dt, limit, thickness of what is unknown, most."""
    (origins, directions), (t_starts, t_ends), (box, thickness, levels, r) = rays, spans, grid
    per_step, limit, unknown, most = numbers
    half = np.float32(0.5)
    for block in range(thread * _RAYS_PER_TURN, len(offsets) - 1, threads * _RAYS_PER_TURN):
        for ray in range(block, min(block + _RAYS_PER_TURN, len(offsets) - 1)):
            total, count, end = np.float32(0), 0, np.float32(np.nan)
            o, d = origins[ray], directions[ray]
            for i in range(offsets[ray], offsets[ray + 1]):
                t0, t1 = t_starts[i], t_ends[i]
                known = _thickness_at(o, d, (t0 + t1) * half, box, thickness, levels, r)
                x = unknown if known < np.float32(0) else known * ((t1 - t0) * per_step)
                joins = t0 == end and count < most and total + x <= limit
                firsts[i] = not joins
                total, count = (total + x, count + 1) if joins else (x, 1)
                end = t1


def starts_of_groups(
    samples: PackedSamples,
    rays: tuple[Tensor, Tensor],
    grid: OccupancyGrid,
    step_size: float,
    numbers: tuple[float, int, int],
) -> Tensor:
    """See `reference.starts_of_groups_torch`, which defines the result.

    Args:
        samples: M intervals.
        rays: origins and directions, each [R, 3] float32.
        grid: whose thickness it goes by.
        step_size: dt.
        numbers: limit of the thickness, unknown intervals that become one, intervals that do at most.

    Returns:
        [M] bool.
    """
    limit, unknown, most = numbers
    firsts = torch.empty(len(samples), dtype=torch.bool)
    box = torch.cat([grid.center, grid.half_extent.reciprocal()])
    arrays = (
        (as_array(rays[0]), as_array(rays[1])),
        (as_array(samples.t_starts), as_array(samples.t_ends)),
        as_array(samples.offsets),
        (as_array(box), as_array(grid.thickness), grid.levels, grid.resolution),
        (np.float32(1.0 / step_size), np.float32(limit), np.float32(limit / unknown), most),
        as_array(firsts),
    )
    run_on_threads(lambda thread, threads: _starts_share(*arrays, thread, threads))
    return firsts
