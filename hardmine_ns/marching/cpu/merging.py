"""Numba kernels that find which samples become one, and that remember hardness: `merging`, `hardness_map`."""

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
def _cell_at(px: np.float32, py: np.float32, pz: np.float32, box: Array, levels: int, r: int) -> tuple[int, bool]:
    """The cell of a point, and whether it is in the grid: `occupancy.locate`. `box`: centre, 1 / half extent [6]."""
    half, one, resolution = np.float32(0.5), np.float32(1), np.float32(r)
    ux, uy, uz = (px - box[0]) * box[3], (py - box[1]) * box[4], (pz - box[2]) * box[5]
    largest = max(abs(ux), abs(uy), abs(uz))
    level, shrink = 0, one
    while level < levels - 1 and largest * shrink >= one:
        level += 1
        shrink *= half
    x = min(max(int((ux * shrink * half + half) * resolution), 0), r - 1)
    y = min(max(int((uy * shrink * half + half) * resolution), 0), r - 1)
    z = min(max(int((uz * shrink * half + half) * resolution), 0), r - 1)
    return ((level * r + x) * r + y) * r + z, largest * shrink < one


@_jit
def _starts_share(
    rays: tuple[Array, Array],
    spans: tuple[Array, Array],
    offsets: Array,
    grid: tuple[Array, Array, int, int],
    numbers: tuple[np.float32, np.float32, np.float32, int, bool],
    firsts: Array,
    thread: int,
    threads: int,
) -> None:
    """Mark the first sample of each group, by what the cells know: thickness, or, with `by_hardness`, hardness.

    `numbers`: 1 / dt, or the mean hardness; limit; x of what is unknown; most; `by_hardness`.
    """
    (origins, directions), (t_starts, t_ends), (box, knowledge, levels, r) = rays, spans, grid
    factor, limit, unknown, most, by_hardness = numbers
    half, zero, one = np.float32(0.5), np.float32(0), np.float32(1)
    for block in range(thread * _RAYS_PER_TURN, len(offsets) - 1, threads * _RAYS_PER_TURN):
        for ray in range(block, min(block + _RAYS_PER_TURN, len(offsets) - 1)):
            total, count, end = np.float32(0), 0, np.float32(np.nan)
            o, d = origins[ray], directions[ray]
            for i in range(offsets[ray], offsets[ray + 1]):
                t0, t1 = t_starts[i], t_ends[i]
                t = (t0 + t1) * half
                cell, _ = _cell_at(o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2], box, levels, r)
                known = knowledge[cell]
                if known < zero:
                    x = unknown
                elif by_hardness:
                    stride = np.floor(factor / known + half) if known > zero else np.float32(most)
                    x = one / min(max(stride, one), np.float32(most))
                else:
                    x = known * ((t1 - t0) * factor)
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
    hardness: tuple[Tensor, float] | None = None,
) -> Tensor:
    """See `reference.starts_of_groups_torch`, which defines the result.

    Args:
        samples: M intervals.
        rays: origins and directions, each [R, 3] float32.
        grid: whose thickness it goes by.
        step_size: dt.
        numbers: limit of the thickness, unknown intervals that become one, intervals that do at most.
        hardness: of the grid's cells, and its mean; by it and not by thickness, if it is given, with the limit 1.

    Returns:
        [M] bool.
    """
    limit, unknown, most = numbers
    firsts = torch.empty(len(samples), dtype=torch.bool)
    box = torch.cat([grid.center, grid.half_extent.reciprocal()])
    factor, whole = (1.0 / step_size, limit) if hardness is None else (hardness[1], 1.0)
    arrays = (
        (as_array(rays[0]), as_array(rays[1])),
        (as_array(samples.t_starts), as_array(samples.t_ends)),
        as_array(samples.offsets),
        (as_array(box), as_array(grid.thickness if hardness is None else hardness[0]), grid.levels, grid.resolution),
        (np.float32(factor), np.float32(limit), np.float32(whole / unknown), most, hardness is not None),
        as_array(firsts),
    )
    run_on_threads(lambda thread, threads: _starts_share(*arrays, thread, threads))
    return firsts


@_jit
def _learn(values: Array, positions: Array, hardness: Array, box: Array, levels: int, r: int, rate: np.float32) -> None:
    """One sample after the other: what a cell becomes depends on their order."""
    for i in range(len(positions)):
        cell, inside = _cell_at(positions[i, 0], positions[i, 1], positions[i, 2], box, levels, r)
        if inside:
            known = values[cell]
            values[cell] = hardness[i] if known < np.float32(0) else known + rate * (hardness[i] - known)


def learn_hardness(values: Tensor, positions: Tensor, hardness: Tensor, grid: OccupancyGrid, rate: float) -> None:
    """See `reference.learn_hardness_torch`, which defines the result.

    Args:
        values: [cells] float32 hardness, negative where it is not known; changed in place.
        positions: [n, 3] float32, scene units; those outside of the grid are left out.
        hardness: [n] float32, of samples at these positions.
        grid: whose cells they are.
        rate: part of the way to a new value.
    """
    box = torch.cat([grid.center, grid.half_extent.reciprocal()])
    arrays = as_array(positions), as_array(hardness), as_array(box)
    _learn(as_array(values), *arrays, grid.levels, grid.resolution, np.float32(rate))
