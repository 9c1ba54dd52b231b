"""Numba kernels for marching and compositing on the CPU. Each thread takes a share of the rays.

No fast-math: results must not depend on the machine, and a voxel is decided by the same float32 operations as in the
PyTorch twin.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from ns_support.threads import run_on_threads

if TYPE_CHECKING:
    from hardmine_ns.marching.occupancy import OccupancyGrid

Array = npt.NDArray[Any]

_FAR_AWAY = 1e30
_SLACK = 0.02
"""Steps by which a jump over an empty voxel falls short, so that rounding never skips a midpoint beyond it."""
_RAYS_PER_TURN = 64
"""Rays that a thread takes at a time: threads stay busy although rays differ in length."""

_jit = njit(nogil=True, cache=True, error_model="numpy")


@_jit
def _first_midpoint_at(t: float, start: float, step: float, cone: float, switch: float, t_switch: float) -> int:
    """The least k whose midpoint is at t or behind it, or a little less."""
    steps = (t - start) / step - 0.5
    if cone > 0.0 and math.ceil(steps - _SLACK) >= switch:
        steps = switch + math.log(max(t / (t_switch * (1.0 + 0.5 * cone)), 1.0)) / math.log1p(cone)
    return max(math.ceil(steps - _SLACK), 0)


@_jit
def _edge(k: int, start: np.float32, step: np.float32, cone: float, switch: float, t_switch: float) -> np.float32:
    if cone > 0.0 and k > switch:
        return np.float32(t_switch * (1.0 + cone) ** (k - switch))
    return np.float32(start + np.float32(k) * step)


@_jit
def _march_ray(
    o: Array,
    d: Array,
    start: np.float32,
    far: np.float32,
    center: Array,
    half: Array,
    binaries: Array,
    step: np.float32,
    cone: float,
    t_starts: Array,
    t_ends: Array,
    cursor: int,
    scratch: Array,
) -> int:
    """Walk one ray; write intervals from `cursor` on unless the outputs are empty; return how many there are."""
    levels, r = binaries.shape[0], binaries.shape[1]
    write = t_starts.shape[0] > 0
    half_step, one, resolution = np.float32(0.5), np.float32(1.0), np.float32(r)
    # A boundary at u (in half extents from the centre) is crossed at a + u b.
    a, b = scratch[0], scratch[1]
    enter, leave, reach = 0.0, _FAR_AWAY, 2.0 ** (levels - 1)
    for i in range(3):
        if d[i] == 0.0:
            if abs(o[i] - center[i]) >= half[i] * reach:
                return 0
            a[i], b[i] = _FAR_AWAY, 0.0
        else:
            a[i] = (float(center[i]) - float(o[i])) / float(d[i])
            b[i] = float(half[i]) / float(d[i])
            enter = max(enter, a[i] - abs(b[i]) * reach)
            leave = min(leave, a[i] + abs(b[i]) * reach)
    nearest = max(enter, float(start))
    if leave <= nearest or far <= nearest:
        return 0

    switch, t_switch, dt = 0.0, float(start), float(step)
    if cone > 0.0:
        switch = max(math.floor((dt / cone - t_switch) / dt) + 1.0, 0.0)
        t_switch += switch * dt
    count = 0
    k = _first_midpoint_at(enter, start, step, cone, switch, t_switch)
    while True:
        t0 = _edge(k, start, step, cone, switch, t_switch)
        t1 = _edge(k + 1, start, step, cone, switch, t_switch)
        middle = (t0 + t1) * half_step
        # The voxel decides what is inside the box; `leave` only ends the walk, with a step to spare for rounding.
        if middle >= far or t0 > leave:
            return count
        ux = (o[0] + middle * d[0] - center[0]) * (one / half[0])
        uy = (o[1] + middle * d[1] - center[1]) * (one / half[1])
        uz = (o[2] + middle * d[2] - center[2]) * (one / half[2])
        largest = max(abs(ux), abs(uy), abs(uz))
        level, scale = 0, one
        while level < levels and largest * scale >= one:
            level += 1
            scale *= half_step
        if level == levels:
            k += 1
            continue
        x = min(max(int((ux * scale * half_step + half_step) * resolution), 0), r - 1)
        y = min(max(int((uy * scale * half_step + half_step) * resolution), 0), r - 1)
        z = min(max(int((uz * scale * half_step + half_step) * resolution), 0), r - 1)
        if binaries[level, x, y, z]:
            if write:
                t_starts[cursor + count] = t0
                t_ends[cursor + count] = t1
            count += 1
            k += 1
            continue
        width, inverse = 2.0 / r, 1.0 / float(scale)
        tx = a[0] + ((x + (b[0] > 0.0)) * width - 1.0) * inverse * b[0]
        ty = a[1] + ((y + (b[1] > 0.0)) * width - 1.0) * inverse * b[1]
        tz = a[2] + ((z + (b[2] > 0.0)) * width - 1.0) * inverse * b[2]
        k = max(k + 1, _first_midpoint_at(min(tx, ty, tz), start, step, cone, switch, t_switch))


@_jit
def _march_share(
    origins: Array,
    directions: Array,
    starts: Array,
    fars: Array,
    center: Array,
    half: Array,
    binaries: Array,
    step: np.float32,
    cone: float,
    offsets: Array,
    counts: Array,
    t_starts: Array,
    t_ends: Array,
    ray_indices: Array,
    thread: int,
    threads: int,
) -> None:
    """One thread's rays: fills `counts` while the outputs are empty, and the outputs otherwise."""
    scratch = np.empty((2, 3))
    write = t_starts.shape[0] > 0
    for block in range(thread * _RAYS_PER_TURN, origins.shape[0], threads * _RAYS_PER_TURN):
        for ray in range(block, min(block + _RAYS_PER_TURN, origins.shape[0])):
            if write and counts[ray] == 0:
                continue
            o, d, at = origins[ray], directions[ray], offsets[ray]
            counts[ray] = _march_ray(
                o, d, starts[ray], fars[ray], center, half, binaries, step, cone, t_starts, t_ends, at, scratch
            )
            if write:
                ray_indices[at : at + counts[ray]] = ray


def march(
    origins: Tensor,
    directions: Tensor,
    starts: Tensor,
    fars: Tensor,
    grid: OccupancyGrid,
    step_size: float,
    cone_angle: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `rays.march_rays`; the jitter is already in `starts`.

    Returns:
        (t_starts [M], t_ends [M], ray_indices [M] int64, offsets [R + 1] int64).
    """
    num_rays = origins.shape[0]
    given = [_array(x) for x in (origins, directions, starts, fars, grid.center, grid.half_extent, grid.binaries)]
    settings = (np.float32(step_size), float(cone_angle))
    offsets = np.zeros(num_rays + 1, np.int64)
    counts = np.zeros(num_rays, np.int64)

    def walk(t_starts: Array, t_ends: Array, ray_indices: Array) -> None:
        arrays = (*given, *settings, offsets, counts, t_starts, t_ends, ray_indices)
        run_on_threads(lambda thread, threads: _march_share(*arrays, thread, threads))

    # Twice: once to count and once to write, so that memory follows the samples and not the longest ray.
    nothing = np.empty(0, np.float32)
    walk(nothing, nothing, np.empty(0, np.int64))
    np.cumsum(counts, out=offsets[1:])
    total = int(offsets[-1])
    t_starts, t_ends = np.empty(total, np.float32), np.empty(total, np.float32)
    ray_indices = np.empty(total, np.int64)
    if total:
        walk(t_starts, t_ends, ray_indices)
    return tuple(torch.from_numpy(x) for x in (t_starts, t_ends, ray_indices, offsets))  # type: ignore[return-value]


@_jit
def _visible_share(
    thickness: Array,
    offsets: Array,
    early_stop: float,
    alpha_threshold: float,
    visible: Array,
    thread: int,
    threads: int,
) -> None:
    for block in range(thread * _RAYS_PER_TURN, offsets.shape[0] - 1, threads * _RAYS_PER_TURN):
        for ray in range(block, min(block + _RAYS_PER_TURN, offsets.shape[0] - 1)):
            transmittance = 1.0
            for i in range(offsets[ray], offsets[ray + 1]):
                alpha = -math.expm1(-thickness[i])
                visible[i] = transmittance >= early_stop and alpha >= alpha_threshold
                transmittance *= 1.0 - alpha


def visible(thickness: Tensor, offsets: Tensor, early_stop: float, alpha_threshold: float) -> Tensor:
    """See `compositing.visible_samples`; a mask [M] bool from the optical thickness [M] of each interval."""
    mask = torch.empty(thickness.shape, dtype=torch.bool)
    arrays = (_array(thickness), _array(offsets), float(early_stop), float(alpha_threshold), _array(mask))
    run_on_threads(lambda thread, threads: _visible_share(*arrays, thread, threads))
    return mask


@_jit
def _composite_share(
    thickness: Array,
    colors: Array,
    middles: Array,
    offsets: Array,
    weights: Array,
    after: Array,
    sums: Array,
    thread: int,
    threads: int,
) -> None:
    """Per ray: sums of w c, of w and of w t; `after` is the transmittance behind each interval."""
    for block in range(thread * _RAYS_PER_TURN, offsets.shape[0] - 1, threads * _RAYS_PER_TURN):
        for ray in range(block, min(block + _RAYS_PER_TURN, offsets.shape[0] - 1)):
            transmittance, red, green, blue, total, depth = 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for i in range(offsets[ray], offsets[ray + 1]):
                w = -transmittance * math.expm1(-thickness[i])
                transmittance *= math.exp(-thickness[i])
                red += w * colors[i, 0]
                green += w * colors[i, 1]
                blue += w * colors[i, 2]
                total += w
                depth += w * middles[i]
                weights[i] = w
                after[i] = transmittance
            sums[ray, 0], sums[ray, 1], sums[ray, 2], sums[ray, 3], sums[ray, 4] = red, green, blue, total, depth


@_jit
def _composite_backward_share(
    colors: Array,
    middles: Array,
    offsets: Array,
    weights: Array,
    after: Array,
    grad_sums: Array,
    grad_weights: Array,
    grad_thickness: Array,
    grad_colors: Array,
    thread: int,
    threads: int,
) -> None:
    for block in range(thread * _RAYS_PER_TURN, offsets.shape[0] - 1, threads * _RAYS_PER_TURN):
        for ray in range(block, min(block + _RAYS_PER_TURN, offsets.shape[0] - 1)):
            red, green, blue = grad_sums[ray, 0], grad_sums[ray, 1], grad_sums[ray, 2]
            behind = 0.0
            for i in range(offsets[ray + 1] - 1, offsets[ray] - 1, -1):
                w = float(weights[i])
                q = red * colors[i, 0] + green * colors[i, 1] + blue * colors[i, 2]
                q += float(grad_sums[ray, 3]) + grad_sums[ray, 4] * middles[i] + grad_weights[i]
                grad_thickness[i] = after[i] * q - behind
                behind += w * q
                grad_colors[i, 0] = w * red
                grad_colors[i, 1] = w * green
                grad_colors[i, 2] = w * blue


def composite(thickness: Tensor, colors: Tensor, middles: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `compositing.composite_torch`, whose twin this is."""
    weights, after = torch.empty_like(thickness), torch.empty_like(thickness)
    sums = thickness.new_empty(offsets.shape[0] - 1, 5)
    arrays = [_array(x) for x in (thickness, colors, middles, offsets, weights, after, sums)]
    run_on_threads(lambda thread, threads: _composite_share(*arrays, thread, threads))
    return weights, after, sums


def composite_backward(
    colors: Tensor,
    middles: Tensor,
    offsets: Tensor,
    weights: Tensor,
    after: Tensor,
    grad_sums: Tensor,
    grad_weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """See `compositing.composite_backward_torch`, whose twin this is."""
    grad_thickness, grad_colors = torch.empty_like(weights), torch.empty_like(colors)
    given = (colors, middles, offsets, weights, after, grad_sums, grad_weights, grad_thickness, grad_colors)
    arrays = [_array(x) for x in given]
    run_on_threads(lambda thread, threads: _composite_backward_share(*arrays, thread, threads))
    return grad_thickness, grad_colors


def _array(tensor: Tensor) -> Array:
    return tensor.detach().contiguous().numpy()
