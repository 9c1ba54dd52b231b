"""The forward and the backward kernel on a GPU with the adaptive step: `kernels` with a step for each lane and slab.

A slab of the step-size schedule (`casting.steps`), n samples with one step, is processed here in parts of K samples.
The functions of `kernels` and `packets` apply to a part as they are: the rays' origins are moved to the slab's first
sample, rows count from there, and the step is one value per lane. Candidates come from the BVH.

As on a CPU (`cpu.march_growing`) the lane that is furthest behind sets a horizon, the end of its own slab, and a lane
whose slab begins beyond it waits; waiting does not change a ray's outputs. If a slab meets no Gaussian, the list
says at which distance any ray meets the next one, and each lane advances to its own slab that contains that distance.

Checked in Triton's interpreter and built ahead of time; not yet run on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.gpu.geometry import BROKEN
from raygauss_ns.casting.gpu.kernels import CHANGING, load_gradients, store_outputs
from raygauss_ns.casting.gpu.launch import GpuRays, GpuScene, launch_both, rays_and_scene
from raygauss_ns.casting.gpu.lists import collect, farthest, open_list, packet_list
from raygauss_ns.casting.gpu.packets import packet_rays, phi, phi_slope, transmittances
from raygauss_ns.casting.gpu.packets_growing import (
    open_growing_packet,
    open_part,
    open_window,
    points_at,
    skip,
    step_at,
    stretch_of,
    take_turns,
)
from raygauss_ns.casting.gpu.slabs import collect_colors, collect_gradients, differentiate
from raygauss_ns.casting.steps import step_schedule
from raygauss_ns.casting.types import CastSettings

_CHANGING = [*CHANGING, "samples"]


@triton.jit(do_not_specialize=_CHANGING)
def growing_collect_kernel(
    origins: ty.Pointer,
    directions: ty.Pointer,
    nears: ty.Pointer,
    fars: ty.Pointer,
    order: ty.Pointer,
    number: ty.Scalar,
    width: ty.Scalar,
    records: ty.Pointer,
    squared_cutoffs: ty.Pointer,
    bounds: ty.Pointer,
    blocks: ty.Pointer,
    first1: ty.Scalar,
    first2: ty.Scalar,
    first3: ty.Scalar,
    roots: ty.Scalar,
    intervals: ty.Pointer,
    entries: ty.Pointer,
    lengths: ty.Pointer,
    capacity: ty.Scalar,
    step: ty.Scalar,
    step_rest: ty.Scalar,
    growth: ty.Scalar,
    limit: ty.Scalar,
    samples: ty.Scalar,
    TILED: tl.constexpr,
) -> None:
    """Write the list of a packet of rays; its length becomes -1 if it cannot hold all that the rays meet."""
    scene = (records, squared_cutoffs, blocks, (first1, first2, first3, roots))
    listed = open_list(intervals, entries, capacity)
    ray, valid = packet_rays(order, number, width, TILED)
    march = (step, step_rest, growth, limit, samples.to(tl.float32))
    origin, direction, _, place, end = open_growing_packet(
        ray, valid, (origins, directions, nears, fars), bounds, march, TILED
    )
    far = tl.where(place < end, end, -1.0)
    rays = (origin, direction, tl.maximum(place, 0.0), far)
    count, full = collect(scene, listed, rays, tl.zeros_like(number), TILED)
    tl.store(lengths + tl.program_id(0), tl.where(full > 0, -1, count))


@triton.jit(do_not_specialize=_CHANGING)
def growing_forward_kernel(
    origins: ty.Pointer,
    directions: ty.Pointer,
    nears: ty.Pointer,
    fars: ty.Pointer,
    order: ty.Pointer,
    number: ty.Scalar,
    width: ty.Scalar,
    records: ty.Pointer,
    squared_cutoffs: ty.Pointer,
    bounds: ty.Pointer,
    blocks: ty.Pointer,
    first1: ty.Scalar,
    first2: ty.Scalar,
    first3: ty.Scalar,
    roots: ty.Scalar,
    intervals: ty.Pointer,
    entries: ty.Pointer,
    lengths: ty.Pointer,
    capacity: ty.Scalar,
    step: ty.Scalar,
    step_rest: ty.Scalar,
    growth: ty.Scalar,
    limit: ty.Scalar,
    samples: ty.Scalar,
    exponent: ty.Scalar,
    offset: ty.Scalar,
    eps: ty.Scalar,
    threshold: ty.Scalar,
    out: ty.Pointer,
    K: tl.constexpr,
    TILED: tl.constexpr,
    WINDOWED: tl.constexpr,
) -> None:
    """Cast a packet of rays: out [R, 5] becomes red, green, blue, transmittance and depth."""
    scene = (records, squared_cutoffs, blocks, (first1, first2, first3, roots))
    listed = open_list(intervals, entries, capacity)
    schedule = (step, growth, limit, samples.to(tl.float32))
    ray, valid = packet_rays(order, number, width, TILED)
    listed_count, mine = packet_list(lengths, WINDOWED)
    valid = valid & mine
    origin, direction, base, place, end = open_growing_packet(
        ray, valid, (origins, directions, nears, fars), bounds, (step, step_rest, growth, limit, schedule[3]), TILED
    )
    transmittance = tl.full([32], 1.0, tl.float32)
    # NaN for a ray whose direction is not of unit length, which has no samples: known from here on without a register.
    red = tl.where(tl.load(fars + ray, mask=valid, other=0) == BROKEN, float("nan"), 0.0)
    green, blue, depth = red, red, red
    none = tl.zeros([32], tl.int32)
    # With WINDOWED there is no list at first, and the first slab must not be skipped.
    seen, full, stop = tl.zeros_like(number), tl.zeros_like(number), tl.zeros_like(schedule[3]) - 1.0
    length = 0.5 * tl.maximum(farthest(end), 0.0)
    if WINDOWED:
        seen += 1
    while tl.max((place < end).to(tl.int32), 0) > 0:
        stretch = stretch_of(transmittance, exponent)
        if seen == 0:
            place = skip(listed, (listed_count, full, stop), base, place, end, stretch, schedule, WINDOWED)
        dt = step_at(base + place, stretch, schedule)
        marches, count = take_turns(base, place, end, dt, offset, schedule[3])
        if WINDOWED:
            reach = farthest(tl.where(marches, tl.minimum(place + schedule[3] * dt, end), -1.0))
            if (reach > stop) & (stop < farthest(end)):
                listed_count, full, stop, length = open_window(
                    scene, listed, (origin, direction, place, end), reach, length, TILED
                )
        window = (listed_count, full)
        first = place + offset * dt
        start = points_at(origin, direction, first)
        seen = seen * 0
        row = seen
        rows = tl.max(count, 0)
        while row < rows:
            part = open_part(origin, direction, first, row, count, dt, K)
            sigma, er, eg, eb, candidates, met = collect_colors(
                scene, listed, window, row, start, part, eps, dt, K, TILED, WINDOWED
            )
            seen = tl.maximum(seen, candidates)
            if met > 0:
                x, before, live = transmittances(sigma, row, none, count, transmittance, threshold, dt, K)
                weight = tl.where(live, before * phi(x), 0.0)
                red += dt * tl.sum(weight * er, 0)
                green += dt * tl.sum(weight * eg, 0)
                blue += dt * tl.sum(weight * eb, 0)
                t = (base + first)[None, :] + (row + tl.arange(0, K)).to(tl.float32)[:, None] * dt[None, :]
                depth += tl.sum(weight * x * t, 0)
                transmittance *= tl.exp(-tl.sum(tl.where(live, x, 0.0), 0))
                count = tl.where(transmittance > threshold, count, 0)
                rows = tl.max(count, 0)
            row += K
        place = tl.where(marches, place + schedule[3] * dt, place)
        end = tl.where(transmittance > threshold, end, -float("inf"))
    store_outputs(out, ray, valid, red != red, (red, green, blue), transmittance, depth)


@triton.jit(do_not_specialize=_CHANGING)
def growing_backward_kernel(
    origins: ty.Pointer,
    directions: ty.Pointer,
    nears: ty.Pointer,
    fars: ty.Pointer,
    order: ty.Pointer,
    number: ty.Scalar,
    width: ty.Scalar,
    records: ty.Pointer,
    squared_cutoffs: ty.Pointer,
    bounds: ty.Pointer,
    blocks: ty.Pointer,
    first1: ty.Scalar,
    first2: ty.Scalar,
    first3: ty.Scalar,
    roots: ty.Scalar,
    intervals: ty.Pointer,
    entries: ty.Pointer,
    lengths: ty.Pointer,
    capacity: ty.Scalar,
    step: ty.Scalar,
    step_rest: ty.Scalar,
    growth: ty.Scalar,
    limit: ty.Scalar,
    samples: ty.Scalar,
    exponent: ty.Scalar,
    offset: ty.Scalar,
    eps: ty.Scalar,
    threshold: ty.Scalar,
    out: ty.Pointer,
    grad_out: ty.Pointer,
    moments: ty.Pointer,
    K: tl.constexpr,
    TILED: tl.constexpr,
    WINDOWED: tl.constexpr,
) -> None:
    """Differentiate a packet of rays: add its contribution to the records' moments [N, 16]."""
    scene = (records, squared_cutoffs, blocks, (first1, first2, first3, roots))
    listed = open_list(intervals, entries, capacity)
    schedule = (step, growth, limit, samples.to(tl.float32))
    ray, valid = packet_rays(order, number, width, TILED)
    listed_count, mine = packet_list(lengths, WINDOWED)
    valid = valid & mine
    origin, direction, base, place, end = open_growing_packet(
        ray, valid, (origins, directions, nears, fars), bounds, (step, step_rest, growth, limit, schedule[3]), TILED
    )
    g, g_depth, remaining = load_gradients(out, grad_out, ray, valid)
    transmittance = tl.full([32], 1.0, tl.float32)
    none = tl.zeros([32], tl.int32)
    # With WINDOWED there is no list at first, and the first slab must not be skipped.
    seen, full, stop = tl.zeros_like(number), tl.zeros_like(number), tl.zeros_like(schedule[3]) - 1.0
    length = 0.5 * tl.maximum(farthest(end), 0.0)
    if WINDOWED:
        seen += 1
    while tl.max((place < end).to(tl.int32), 0) > 0:
        stretch = stretch_of(transmittance, exponent)
        if seen == 0:
            place = skip(listed, (listed_count, full, stop), base, place, end, stretch, schedule, WINDOWED)
        dt = step_at(base + place, stretch, schedule)
        marches, count = take_turns(base, place, end, dt, offset, schedule[3])
        if WINDOWED:
            reach = farthest(tl.where(marches, tl.minimum(place + schedule[3] * dt, end), -1.0))
            if (reach > stop) & (stop < farthest(end)):
                listed_count, full, stop, length = open_window(
                    scene, listed, (origin, direction, place, end), reach, length, TILED
                )
        window = (listed_count, full)
        first = place + offset * dt
        start = points_at(origin, direction, first)
        seen = seen * 0
        row = seen
        rows = tl.max(count, 0)
        while row < rows:
            part = open_part(origin, direction, first, row, count, dt, K)
            sigma, g_e, candidates, met = collect_gradients(
                scene, listed, window, row, start, part, g, eps, dt, K, TILED, WINDOWED
            )
            seen = tl.maximum(seen, candidates)
            if met > 0:
                x, before, live = transmittances(sigma, row, none, count, transmittance, threshold, dt, K)
                before = tl.where(live, before, 0.0)
                t = (base + first)[None, :] + (row + tl.arange(0, K)).to(tl.float32)[:, None] * dt[None, :]
                g_t = g_depth[None, :] * t
                weight = before * phi(x)
                p = weight * dt[None, :]
                contribution = p * g_e + weight * x * g_t
                behind = remaining[None, :] - tl.cumsum(contribution, 0)
                q = before * phi_slope(x) * (dt * dt)[None, :] * g_e
                q += (before * tl.exp(-x) * g_t - behind) * dt[None, :]
                q = tl.where(live, q, 0.0)
                differentiate(scene, listed, window, row, start, part, g, p, q, moments, eps, dt, K, TILED, WINDOWED)
                remaining -= tl.sum(contribution, 0)
                transmittance *= tl.exp(-tl.sum(tl.where(live, x, 0.0), 0))
                count = tl.where(transmittance > threshold, count, 0)
                rows = tl.max(count, 0)
            row += K
        place = tl.where(marches, place + schedule[3] * dt, place)
        end = tl.where(transmittance > threshold, end, -float("inf"))


def _arguments(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> tuple[object, ...]:
    """The arguments that both kernels begin with."""
    schedule = step_schedule(settings)
    step = float(np.float32(schedule.step))
    return (
        *rays_and_scene(scene, rays),
        step,
        schedule.step - step,  # the rounding error: Triton passes a number as float32
        schedule.growth,
        schedule.limit,
        schedule.samples,
        schedule.exponent,
        settings.sample_offset,
        settings.density_threshold,
        settings.transmittance_threshold,
    )


def collect_lists(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> None:
    """`launch.collect_lists` for the adaptive step."""
    arguments = _arguments(scene, rays, settings)[:-4]
    growing_collect_kernel[(rays.packets,)](*arguments, TILED=rays.width > 0, num_warps=1)


def cast_forward(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> Tensor:
    """`launch.cast_forward` for the adaptive step."""
    out = rays.nears.new_empty(len(rays.nears), 5)
    collect_lists(scene, rays, settings)
    launch_both(growing_forward_kernel, rays, settings, (*_arguments(scene, rays, settings), out))
    return out


def cast_backward(scene: GpuScene, rays: GpuRays, settings: CastSettings, out: Tensor, grad_out: Tensor) -> Tensor:
    """`launch.cast_backward` for the adaptive step."""
    sums = torch.zeros_like(scene.hierarchy.records)
    launch_both(growing_backward_kernel, rays, settings, (*_arguments(scene, rays, settings), out, grad_out, sums))
    return sums
