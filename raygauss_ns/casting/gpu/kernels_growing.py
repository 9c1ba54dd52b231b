"""The forward and the backward kernel on a GPU with the adaptive step: `kernels` with a step for each lane and slab.

A slab of the step-size schedule (`casting.steps`), n samples with one step, is processed here in parts of K samples.
The functions of `kernels` and `packets` apply to a part as they are: the rays' origins are moved to the slab's first
sample, rows count from there, and the step is one value per lane. Candidates come from the BVH.

As on a CPU (`cpu.march_growing`) the lane that is furthest behind sets a horizon, the end of its own slab, and a lane
whose slab begins beyond it waits; waiting does not change a ray's outputs. If a slab meets no leaf, one traversal finds
the next distance at which any ray meets one, and each lane advances to its own slab that contains that distance.

Checked in Triton's interpreter and built ahead of time; not yet run on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.gpu.candidates import next_in_bvh
from raygauss_ns.casting.gpu.kernels import _collect_colors, _collect_gradients, _differentiate, _load_gradients
from raygauss_ns.casting.gpu.launch import GpuRays, GpuScene, rays_and_records, slab_of
from raygauss_ns.casting.gpu.packets import (
    box_interval,
    load_vector,
    open_slab,
    packet_rays,
    phi,
    phi_slope,
    transmittances,
)
from raygauss_ns.casting.steps import step_schedule
from raygauss_ns.casting.types import CastSettings

_CHANGING = ["number", "width", "nodes", "samples"]


@triton.jit
def _stretch(transmittance: ty.Lanes, exponent: ty.Scalar) -> ty.Lanes:
    """T^-gamma."""
    return tl.exp2(-exponent * tl.log2(tl.maximum(transmittance, 1e-30)))


@triton.jit
def _step_at(begin: ty.Lanes, stretch: ty.Lanes, schedule: ty.Fields) -> ty.Lanes:
    """The steps of slabs that begin at distances [RAYS]; `schedule` is step, growth, limit and samples of a slab."""
    step, growth, limit, _ = schedule
    return tl.minimum(tl.maximum(begin * growth, step) * stretch, limit)


@triton.jit
def _advance(begin: ty.Lanes, target: ty.Lanes, stretch: ty.Lanes, schedule: ty.Fields) -> ty.Lanes:
    """From `begin` to the slab that contains a distance, as `steps.advance`: [RAYS] in the precision of the arguments.

    Returned as a difference, which keeps its digits where `begin` is large.
    """
    step, growth, limit, samples = schedule
    gap = tl.maximum(tl.minimum(target, 1e30) - begin, 0.0)
    # Up to dt0 / g. Without growth that is infinitely far, and `growth * begin < step` always.
    near = growth * begin < step
    length = samples * tl.minimum(step * stretch, limit)
    whole = tl.floor(gap / length)
    slabs = tl.ceil((step / growth - begin) / length)
    first = tl.where(near, tl.minimum(whole, slabs), 0.0) * length
    arrived = near & (whole <= slabs)
    # Then in proportion to the distance. 1 + y is rounded, and the quotient corrects for it: log2(r) keeps its digits.
    start = tl.maximum(begin + first, 1e-30)
    y = samples * growth * stretch
    r = 1.0 + y
    per_slab = tl.log2(r) * (y / (r - 1.0))
    whole = tl.floor(tl.log2(1.0 + tl.maximum(gap - first, 0.0) / start) / per_slab)
    slabs = tl.ceil(tl.log2(limit / (growth * start * stretch)) / per_slab)
    rises = growth * start * stretch < limit
    second = first + tl.where(rises, tl.exp2(tl.minimum(whole, slabs) * per_slab) - 1.0, 0.0) * start
    steady = ~(rises & (whole <= slabs))
    # Then at the largest step.
    length = samples * limit
    third = second + tl.floor(tl.maximum(gap - second, 0.0) / length) * length
    return tl.where(arrived, first, tl.where(steady, third, second))


@triton.jit
def _open_packet(
    ray: ty.Lanes, valid: ty.Lanes, rays: ty.Fields, boxes: ty.Pointer, march: ty.Fields, TILED: tl.constexpr
) -> tuple[ty.Vector, ty.Vector, ty.Lanes, ty.Lanes, ty.Lanes]:
    """Load the packet's rays.

    Args:
        ray: [RAYS] which rays.
        valid: [RAYS] which lanes have one.
        rays: the arrays of origins, directions, nears and far ends.
        boxes: the nodes' boxes; the first is the root's.
        march: step, its rounding error (the step is a float32), growth, limit, samples of a slab.
        TILED: whether the packet's own origins are at one distance for all rays, or each where its ray begins.

    Returns:
        The packet's own origins, directions, and distances [RAYS]: of the packet's own origin from the ray's, and from
        there to the first slab and to the end of the ray (minus infinity if the ray has nothing to march through).
    """
    origins, directions, nears, fars = rays
    step, step_rest, growth, limit, samples = march
    origin = load_vector(origins + ray * 3, valid, 0.0)
    direction = load_vector(directions + ray * 3, valid, 1.0)
    near = tl.load(nears + ray, mask=valid, other=0.0)
    far = tl.load(fars + ray, mask=valid, other=-1.0)
    enter, leave = box_interval(boxes, tl.zeros_like(tl.program_id(0)), origin, direction)
    # Bounded, because the box of an empty scene is almost infinitely far away; and widened by float32's rounding error.
    enter = tl.minimum(tl.maximum(enter, -1e28), 1e28)
    leave = tl.minimum(tl.maximum(leave, -1e28), 1e28)
    met = enter <= leave
    enter -= 2.0 * step + 1e-5 * tl.abs(enter)
    end = tl.minimum(leave + 2.0 * step + 1e-5 * tl.abs(leave), far)
    # In float64: the rounding of a far origin would shift all samples.
    wide = tl.zeros([32], tl.float64)
    begin = near.to(tl.float64)
    schedule = (wide + step + step_rest, wide + growth, wide + limit, wide + samples)
    begin += _advance(begin, enter.to(tl.float64), wide + 1.0, schedule)
    some = met & (begin < end)
    base = tl.where(some, begin, 0.0).to(tl.float32)
    if TILED:
        first = tl.min(tl.where(some, base, float("inf")), 0)
        base = tl.where(first < float("inf"), first, 0.0) + tl.zeros([32], tl.float32)
    start = base.to(tl.float64)
    ox = (origin[0].to(tl.float64) + start * direction[0].to(tl.float64)).to(tl.float32)
    oy = (origin[1].to(tl.float64) + start * direction[1].to(tl.float64)).to(tl.float32)
    oz = (origin[2].to(tl.float64) + start * direction[2].to(tl.float64)).to(tl.float32)
    place = tl.where(some, begin - start, 0.0).to(tl.float32)
    end = tl.where(some, (end.to(tl.float64) - start).to(tl.float32), -float("inf"))
    return (ox, oy, oz), direction, base, place, end


@triton.jit
def _skip(
    scene: ty.Fields,
    rays: ty.Fields,
    place: ty.Lanes,
    end: ty.Lanes,
    stretch: ty.Lanes,
    schedule: ty.Fields,
) -> ty.Lanes:
    """Where each lane's next slab begins if the slabs before the nearest leaf are skipped.

    Args:
        scene: records, squared cutoff radii, boxes, BVH skip pointers, number of nodes.
        rays: the packet's own origins, directions, and the distances of these origins from the rays' origins.
        place: [RAYS] distance from the packet's own origin to the next slab.
        end: [RAYS] distance from the packet's own origin to the end of the ray.
        stretch: [RAYS] T^-gamma.
        schedule: step, growth, limit and samples of a slab.
    """
    origin, direction, base = rays
    last = tl.max(end, 0)
    nearest = next_in_bvh(scene, last, origin, direction, place, end)
    # One step early: the distance is rounded.
    target = tl.minimum(nearest - schedule[0], end)
    moved = place + _advance(base + place, base + target, stretch, schedule)
    return tl.where(nearest < last, moved, tl.maximum(place, end))


@triton.jit
def _take_turns(
    base: ty.Lanes, place: ty.Lanes, end: ty.Lanes, dt: ty.Lanes, offset: ty.Scalar, samples: ty.Scalar
) -> tuple[ty.Lanes, ty.Lanes]:
    """Which lanes march now, and how many samples of its slab each of them has: bool and int32 [RAYS]."""
    active = place < end
    begin = base + place
    horizon = tl.min(tl.where(active, begin + samples * dt, float("inf")), 0)
    marches = active & (begin <= horizon)
    # The quotient may be infinite.
    count = tl.minimum(tl.ceil((end - place) / dt - offset), samples)
    return marches, tl.where(marches, tl.maximum(count, 0.0), 0.0).to(tl.int32)


@triton.jit
def _at(origin: ty.Vector, direction: ty.Vector, t: ty.Lanes) -> ty.Vector:
    """Points along the rays."""
    return origin[0] + t * direction[0], origin[1] + t * direction[1], origin[2] + t * direction[2]


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
    boxes: ty.Pointer,
    links: ty.Pointer,
    nodes: ty.Scalar,
    step: ty.Scalar,
    step_rest: ty.Scalar,
    growth: ty.Scalar,
    exponent: ty.Scalar,
    limit: ty.Scalar,
    samples: ty.Scalar,
    offset: ty.Scalar,
    eps: ty.Scalar,
    threshold: ty.Scalar,
    out: ty.Pointer,
    K: tl.constexpr,
    TILED: tl.constexpr,
) -> None:
    """Cast a packet of rays: out [R, 5] becomes red, green, blue, transmittance and depth."""
    scene = (records, squared_cutoffs, boxes, links, nodes)
    schedule = (step, growth, limit, samples.to(tl.float32))
    ray, valid = packet_rays(order, number, width, TILED)
    origin, direction, base, place, end = _open_packet(
        ray, valid, (origins, directions, nears, fars), boxes, (step, step_rest, growth, limit, schedule[3]), TILED
    )
    transmittance = tl.full([32], 1.0, tl.float32)
    red = tl.zeros([32], tl.float32)
    green = tl.zeros([32], tl.float32)
    blue = tl.zeros([32], tl.float32)
    depth = tl.zeros([32], tl.float32)
    none = tl.zeros([32], tl.int32)
    seen = tl.zeros_like(number)
    places = (seen, seen, seen + nodes)
    while tl.max((place < end).to(tl.int32), 0) > 0:
        stretch = _stretch(transmittance, exponent)
        if seen == 0:
            place = _skip(scene, (origin, direction, base), place, end, stretch, schedule)
        dt = _step_at(base + place, stretch, schedule)
        marches, count = _take_turns(base, place, end, dt, offset, schedule[3])
        first = place + offset * dt
        start = _at(origin, direction, first)
        seen = seen * 0
        row = seen
        rows = tl.max(count, 0)
        while row < rows:
            slab = open_slab(row, start, direction, none, count, dt, K)
            sigma, er, eg, eb, candidates, met = _collect_colors(
                scene, places, row, start, direction, slab, eps, dt, K, False
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
    to = out + ray * 5
    tl.store(to, red, mask=valid)
    tl.store(to + 1, green, mask=valid)
    tl.store(to + 2, blue, mask=valid)
    tl.store(to + 3, transmittance, mask=valid)
    tl.store(to + 4, depth, mask=valid)


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
    boxes: ty.Pointer,
    links: ty.Pointer,
    nodes: ty.Scalar,
    step: ty.Scalar,
    step_rest: ty.Scalar,
    growth: ty.Scalar,
    exponent: ty.Scalar,
    limit: ty.Scalar,
    samples: ty.Scalar,
    offset: ty.Scalar,
    eps: ty.Scalar,
    threshold: ty.Scalar,
    out: ty.Pointer,
    grad_out: ty.Pointer,
    moments: ty.Pointer,
    K: tl.constexpr,
    TILED: tl.constexpr,
) -> None:
    """Differentiate a packet of rays: add its contribution to the records' moments [N, 16]."""
    scene = (records, squared_cutoffs, boxes, links, nodes)
    schedule = (step, growth, limit, samples.to(tl.float32))
    ray, valid = packet_rays(order, number, width, TILED)
    origin, direction, base, place, end = _open_packet(
        ray, valid, (origins, directions, nears, fars), boxes, (step, step_rest, growth, limit, schedule[3]), TILED
    )
    g, g_depth, remaining = _load_gradients(out, grad_out, ray, valid)
    transmittance = tl.full([32], 1.0, tl.float32)
    none = tl.zeros([32], tl.int32)
    seen = tl.zeros_like(number)
    places = (seen, seen, seen + nodes)
    while tl.max((place < end).to(tl.int32), 0) > 0:
        stretch = _stretch(transmittance, exponent)
        if seen == 0:
            place = _skip(scene, (origin, direction, base), place, end, stretch, schedule)
        dt = _step_at(base + place, stretch, schedule)
        marches, count = _take_turns(base, place, end, dt, offset, schedule[3])
        first = place + offset * dt
        start = _at(origin, direction, first)
        seen = seen * 0
        row = seen
        rows = tl.max(count, 0)
        while row < rows:
            slab = open_slab(row, start, direction, none, count, dt, K)
            sigma, g_e, candidates, met = _collect_gradients(
                scene, places, row, start, direction, slab, g, eps, dt, K, False
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
                _differentiate(scene, places, row, start, direction, slab, g, p, q, moments, eps, dt, K, False)
                remaining -= tl.sum(contribution, 0)
                transmittance *= tl.exp(-tl.sum(tl.where(live, x, 0.0), 0))
                count = tl.where(transmittance > threshold, count, 0)
                rows = tl.max(count, 0)
            row += K
        place = tl.where(marches, place + schedule[3] * dt, place)
        end = tl.where(transmittance > threshold, end, -float("inf"))


def _arguments(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> tuple[object, ...]:
    """The arguments that both kernels begin with."""
    schedule, bvh = step_schedule(settings), scene.bvh
    step = float(np.float32(schedule.step))
    return (
        *rays_and_records(scene, rays),
        bvh.links,
        len(bvh.links),
        step,
        schedule.step - step,  # the rounding error: Triton passes a number as float32
        schedule.growth,
        schedule.exponent,
        schedule.limit,
        schedule.samples,
        settings.sample_offset,
        settings.density_threshold,
        settings.transmittance_threshold,
    )


def _constants(rays: GpuRays, settings: CastSettings) -> dict[str, int]:
    """The compile-time constants of both kernels."""
    return {"K": slab_of(settings), "TILED": rays.width > 0, "num_warps": 1}


def cast_forward(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> Tensor:
    """`launch.cast_forward` for the adaptive step."""
    out = rays.nears.new_empty(len(rays.nears), 5)
    growing_forward_kernel[(rays.packets,)](*_arguments(scene, rays, settings), out, **_constants(rays, settings))
    return out


def cast_backward(scene: GpuScene, rays: GpuRays, settings: CastSettings, out: Tensor, grad_out: Tensor) -> Tensor:
    """`launch.cast_backward` for the adaptive step."""
    sums = torch.zeros_like(scene.bvh.records)
    growing_backward_kernel[(rays.packets,)](
        *_arguments(scene, rays, settings), out, grad_out, sums, **_constants(rays, settings)
    )
    moments = torch.empty_like(sums)
    moments[scene.bvh.order] = sums
    return moments[:, :13]
