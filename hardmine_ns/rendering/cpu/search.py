"""The visibility pass on a CPU: what `visibility.search` does for any device, with a kernel for each of its parts.

Samples are evaluated in rounds, and what was found of the n-th evaluated one lies in the n-th row of each array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

import ns_support.kernels.compiling  # noqa: F401 - tells the user when kernels are compiled
from hardmine_ns.marching import PackedSamples
from ns_support.concurrency.threads import num_threads, run_on_threads
from ns_support.kernels.arrays import FloatArray, IndexArray

Array: TypeAlias = npt.NDArray[Any]

_RAYS_WORTH_A_THREAD = 64

_jit = njit(nogil=True, cache=True, error_model="numpy")


class RayArrays(NamedTuple):
    """Rays and their samples in the kernels; shapes as in `Rays` and `PackedSamples`."""

    origins: FloatArray
    directions: FloatArray
    offsets: IndexArray
    t_starts: FloatArray
    t_ends: FloatArray
    middles: FloatArray


class CubeArrays(NamedTuple):
    """`UnitCube` in the kernels."""

    center: FloatArray
    scale: FloatArray
    """[3] the inverse of the half extents."""
    contracts: bool


class Found(NamedTuple):
    """Samples that were evaluated: the first `count` rows of each array."""

    positions: FloatArray
    """[M, 3] in the scene."""
    unit: FloatArray
    """[M, 3] in the unit cube."""
    geometry: FloatArray
    """[M, 16] outputs of the density network."""
    features: FloatArray
    """[M, L F] the encoding."""
    densities: FloatArray
    """[M]."""
    places: IndexArray
    """[M] where each marched sample is in these arrays; -1: nowhere."""


@_jit
def _plan_round(offsets: IndexArray, depths: Array, limit: float, begin: int, end: int, starts: IndexArray) -> None:
    """Where each ray's samples of a round begin among those of all rays, [R + 1]; rays that are opaque have none."""
    starts[0] = 0
    for ray in range(len(depths)):
        last = min(offsets[ray + 1] - offsets[ray], end)
        wanted = max(last - begin, 0) if depths[ray] <= limit else 0
        starts[ray + 1] = starts[ray] + wanted


@_jit
def _place(
    rays: RayArrays, cube: CubeArrays, starts: IndexArray, begin: int, found: Found, first: int, a: int, b: int
) -> None:
    """Positions of a round's samples of the rays [a, b), in the scene and in the cube, from row `first` on."""
    positions, unit, one = found.positions, found.unit, np.float32(1)
    half, two, quarter, zero = np.float32(0.5), np.float32(2), np.float32(0.25), np.float32(0)
    for ray in range(a, b):
        sample = rays.offsets[ray] + begin
        for row in range(first + starts[ray], first + starts[ray + 1]):
            found.places[sample] = row
            t, largest = rays.middles[sample], one
            for axis in range(3):
                position = rays.origins[ray, axis] + rays.directions[ray, axis] * t
                positions[row, axis] = position
                unit[row, axis] = (position - cube.center[axis]) * cube.scale[axis]
                largest = max(largest, abs(unit[row, axis]))
            factor = (two - one / largest) / largest * quarter if cube.contracts else half
            for axis in range(3):
                u = unit[row, axis] * factor + half
                unit[row, axis] = zero if u < zero else (one if u > one else u)
            sample += 1


@_jit
def _deepen(
    rays: RayArrays, starts: IndexArray, begin: int, found: Found, first: int, depths: Array, a: int, b: int
) -> None:
    """Densities of a round's samples of the rays [a, b), and the rays' optical depths behind them."""
    for ray in range(a, b):
        sample = rays.offsets[ray] + begin
        for row in range(first + starts[ray], first + starts[ray + 1]):
            density = np.exp(found.geometry[row, 0])
            found.densities[row] = density
            depths[ray] += float(density * (rays.t_ends[sample] - rays.t_starts[sample]))
            sample += 1


@_jit
def _mark_visible(
    rays: RayArrays, found: Found, early_stop: float, alpha_threshold: float, counts: IndexArray, a: int, b: int
) -> None:
    """Keep in `places` the visible samples of the rays [a, b) only, and count them: `marching.visible_samples`."""
    for ray in range(a, b):
        transmittance, count = 1.0, 0
        for sample in range(rays.offsets[ray], rays.offsets[ray + 1]):
            row = found.places[sample]
            if row < 0:
                continue
            alpha = -math.expm1(-found.densities[row] * (rays.t_ends[sample] - rays.t_starts[sample]))
            if transmittance >= early_stop and alpha >= alpha_threshold:
                count += 1
            else:
                found.places[sample] = -1
            transmittance *= 1.0 - alpha
        counts[ray] = count


@_jit
def _take_visible(
    rays: RayArrays,
    found: Found,
    offsets: IndexArray,
    samples: tuple[FloatArray, FloatArray, FloatArray, IndexArray],
    outputs: tuple[FloatArray, FloatArray, FloatArray],
    a: int,
    b: int,
) -> None:
    """Copy what was found of the visible samples of the rays [a, b), in order."""
    t_starts, t_ends, middles, ray_indices = samples
    unit, geometry, features = outputs
    for ray in range(a, b):
        to = offsets[ray]
        for sample in range(rays.offsets[ray], rays.offsets[ray + 1]):
            row = found.places[sample]
            if row < 0:
                continue
            t_starts[to], t_ends[to], middles[to] = rays.t_starts[sample], rays.t_ends[sample], rays.middles[sample]
            ray_indices[to] = ray
            for i in range(3):
                unit[to, i] = found.unit[row, i]
            for i in range(geometry.shape[1]):
                geometry[to, i] = found.geometry[row, i]
            for i in range(features.shape[1]):
                features[to, i] = found.features[row, i]
            to += 1


def _on_rays(rays: int, work: Callable[[int, int], None]) -> None:
    """Call `work(first, last)` on every thread for its part of the rays."""
    threads = max(1, min(num_threads(), rays // _RAYS_WORTH_A_THREAD))
    run_on_threads(lambda thread, of: work(rays * thread // of, rays * (thread + 1) // of), threads)


Evaluate: TypeAlias = Callable[[FloatArray, FloatArray, FloatArray], None]
"""Encoding and density network: of points [n, 3] of the unit cube, writes features [n, L F] and outputs [n, 16]."""


class Limits(NamedTuple):
    """When a sample is visible."""

    early_stop: float
    """Transmittance in [0, 1] below which the rest of a ray is hidden; 0 searches everything."""
    alpha_threshold: float
    """Opacity in [0, 1] below which a sample is dropped."""


def search(
    rays: RayArrays,
    cube: CubeArrays,
    rounds: Iterable[tuple[int, int]],
    evaluate: Evaluate,
    limits: Limits,
    widths: tuple[int, int],
) -> tuple[Found, int]:
    """Evaluate samples front to back, in rounds, up to where the rays are opaque.

    Args:
        rays: R rays with M samples.
        cube: maps their positions to the field.
        rounds: first and last sample of a ray that each round looks at.
        evaluate: the field.
        limits: what is visible.
        widths: columns of features and of the density network's outputs.

    Returns:
        What was found, and of how many samples.
    """
    samples, num_rays = len(rays.t_starts), len(rays.offsets) - 1
    # Not all of it is written, and what is not costs nothing.
    found = Found(
        np.empty((samples, 3), np.float32),
        np.empty((samples, 3), np.float32),
        np.empty((samples, widths[1]), np.float32),
        np.empty((samples, widths[0]), np.float32),
        np.empty(samples, np.float32),
        np.full(samples, -1),
    )
    limit = -math.log(limits.early_stop) if limits.early_stop > 0 else math.inf
    depths, starts, first = np.zeros(num_rays), np.empty(num_rays + 1, np.int64), 0
    for begin, end in rounds:
        _plan_round(rays.offsets, depths, limit, begin, end, starts)
        own = slice(first, first + int(starts[-1]))
        _on_rays(num_rays, partial(_place, rays, cube, starts, begin, found, first))
        evaluate(found.unit[own], found.features[own], found.geometry[own])
        _on_rays(num_rays, partial(_deepen, rays, starts, begin, found, first, depths))
        first = own.stop
    return found, first


def visible(rays: RayArrays, found: Found, limits: Limits) -> tuple[PackedSamples, Tensor, Tensor, Tensor]:
    """The visible samples, with their points in the cube, outputs of the density network and features.

    Keeps the places of these alone.
    """
    counts = np.zeros(len(rays.offsets), np.int64)
    _on_rays(len(counts) - 1, partial(_mark_visible, rays, found, *map(float, limits), counts[1:]))
    offsets = np.cumsum(counts)
    kept = int(offsets[-1])
    # Their starts, ends, middles and rays.
    samples = (*(np.empty(kept, np.float32) for _ in range(3)), np.empty(kept, np.int64))
    outputs = tuple(np.empty((kept, a.shape[1]), np.float32) for a in (found.unit, found.geometry, found.features))
    _on_rays(len(counts) - 1, partial(_take_visible, rays, found, offsets, samples, outputs))
    t_starts, t_ends, middles, ray_indices = map(torch.from_numpy, samples)
    unit, geometry, features = map(torch.from_numpy, outputs)
    own = PackedSamples(t_starts, t_ends, ray_indices, torch.from_numpy(offsets), middles)
    return own, unit, geometry, features
