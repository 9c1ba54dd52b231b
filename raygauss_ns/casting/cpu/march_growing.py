"""The caster on a CPU with the adaptive step: packets and slabs as in `march`, with a step for each lane and slab.

Within a slab the samples of a lane are evenly spaced. The functions of `slabs`, `compositing` and `march` therefore
apply as they are: they are compiled once more, for a `March` whose step and pitch are vectors. The rows of every slab
count from 0; only the position of a lane's row 0 changes from slab to slab.

Rays of a packet with different transmittances take steps of different length and would drift apart, until a slab's cone
contained half of the scene. So the lane that is furthest behind sets a horizon, the end of its own slab, and a lane
whose slab begins beyond the horizon waits. Waiting does not change a ray's outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ns_support.kernels.arrays import FloatArray, IntArray
from ns_support.kernels.simd import LANES, Pointer, get, load, pointer, put, reduce_min
from raygauss_ns.casting import steps as rules
from raygauss_ns.casting.cpu import layout as at
from raygauss_ns.casting.cpu.bvh import Bvh
from raygauss_ns.casting.cpu.compositing import composite, composite_gradients
from raygauss_ns.casting.cpu.march import (
    backward_with,
    differentiate_slab,
    forward_with,
    open_gradients,
    pointers_of,
    store_outputs,
)
from raygauss_ns.casting.cpu.packets import (
    March,
    RayArrays,
    RayPointers,
    begin_outputs,
    box_interval,
    open_cone,
    set_lane,
    tile_ray,
)
from raygauss_ns.casting.cpu.slabs import fill_slab
from raygauss_ns.casting.steps import StepSchedule, step_schedule
from raygauss_ns.casting.types import CastSettings

_step_at = njit(nogil=True)(rules.step_at)
_advance = njit(nogil=True)(rules.advance)


class GrowingMarch(NamedTuple):
    """The settings in the form that the kernels take.

    Attributes:
        schedule: the step-size schedule.
        offset: where in its step a sample sits.
        threshold: of the transmittance.
        eps: the density cutoff.
        slab: rows of a slab: its samples, or a sixteenth of them if all lanes sample the same ray.
    """

    schedule: StepSchedule
    offset: float
    threshold: np.float32
    eps: np.float32
    slab: int


@njit(cache=True, nogil=True)
def _place(places: Pointer, lane: int, rays: RayPointers, ray: int, box: Pointer, march: GrowingMarch) -> bool:
    """Move a lane to the slab in which its ray enters a box; False if the ray has nothing to march through."""
    near, far = np.float64(get(rays.nears, ray)), np.float64(get(rays.ends, ray))
    enter, leave = box_interval(rays, ray, box)
    start, limit = _advance(near, enter, 1.0, march.schedule), min(far, leave)
    put(places, at.LANE_START + lane, start)
    put(places, at.LANE_LIMIT + lane, limit)
    return start < limit


@njit(cache=True, nogil=True)
def _open_packet(
    ws: Pointer, ids: Pointer, places: Pointer, rays: RayPointers, packet: int, box: Pointer, march: GrowingMarch
) -> bool:
    """Load a packet's lanes; False if none of them meets the box."""
    single = rays.width == 0
    base = np.inf
    for lane in range(LANES):
        ray = packet if single else tile_ray(rays, packet, lane)
        put(ids, lane, ray)
        active = ray >= 0 and _place(places, lane, rays, ray, box, march)
        put(ws, at.FIRST_ROW + lane, 0.0)
        put(ws, at.END_ROW + lane, 1.0 if active else 0.0)
        if active:
            base = min(base, get(places, at.LANE_START + lane))
        else:
            put(places, at.LANE_LIMIT + lane, -np.inf)
    begin_outputs(ws)
    if base == np.inf:
        return False
    put(places, at.PACKET_BASE, base)
    for lane in range(LANES):
        set_lane(ws, lane, rays, max(get(ids, lane), 0), base, 0.0)
    open_cone(ws)
    return True


@njit(cache=True, nogil=True)
def _set_steps(ws: Pointer, places: Pointer, march: GrowingMarch) -> bool:
    """Set each lane's step, and the horizon; False if all lanes have finished."""
    horizon = np.inf
    for lane in range(LANES):
        start, transmittance = get(places, at.LANE_START + lane), get(ws, at.TRANSMITTANCE + lane)
        step = 0.0
        if start < get(places, at.LANE_LIMIT + lane) and transmittance > march.threshold:
            step = _step_at(start, np.float64(transmittance), march.schedule)
            horizon = min(horizon, start + march.schedule.samples * step)
        put(places, at.LANE_STEP + lane, step)
    put(places, at.HORIZON, horizon)
    return horizon < np.inf


@njit(cache=True, nogil=True)
def _enter_slab(ws: Pointer, places: Pointer, march: GrowingMarch, single: bool) -> March:
    """Lay out the rows of the next slab for every lane that marches, and mark the others idle."""
    horizon, base, samples = get(places, at.HORIZON), get(places, at.PACKET_BASE), march.schedule.samples
    near, far = np.inf, -np.inf
    for lane in range(LANES):
        start, step = get(places, at.LANE_START + lane), get(places, at.LANE_STEP + lane)
        marches = step > 0.0 and start < horizon
        first, rows = base, 0.0
        if marches:
            first = start + (march.offset + (lane if single else 0)) * step
            count = min(np.ceil((get(places, at.LANE_LIMIT + lane) - start) / step - march.offset), float(samples))
            rows = np.ceil((count - lane) / LANES) if single else count
            near = min(near, first - base)
            far = max(far, start + (march.offset + samples - 1) * step - base)
        else:
            step = march.schedule.step  # any value that is safe to divide by
        put(ws, at.STEPS + lane, step)
        put(ws, at.PITCHES + lane, step * LANES if single else step)
        put(ws, at.LOCAL_DISTANCE + lane, first - base)
        put(ws, at.RAY_DISTANCE + lane, first)
        put(ws, at.END_ROW + lane, max(rows, 0.0))
        put(ws, at.IDLE + lane, 0.0 if rows > 0.0 else np.inf)
    slack = 0.01 * march.schedule.step  # covers rounding
    put(ws, at.CONE_NEAR, near - slack)
    put(ws, at.CONE_FAR, far + slack)
    step, offset = march.schedule.step, march.offset
    return March(step, offset, load(ws, at.STEPS), load(ws, at.PITCHES), march.threshold, march.eps, march.slab)


@njit(cache=True, nogil=True)
def _leave_slab(ws: Pointer, places: Pointer, march: GrowingMarch) -> None:
    """Advance the lanes that marched to their next slab, skipping whole slabs in empty space."""
    horizon, base, step = get(places, at.HORIZON), get(places, at.PACKET_BASE), march.schedule.step
    searched = np.float64(get(ws, at.CONE_FAR))
    empty_until = base + np.float64(reduce_min(load(ws, at.NEXT_DISTANCE))) - 0.01 * step
    for lane in range(LANES):
        start = get(places, at.LANE_START + lane)
        if get(places, at.LANE_STEP + lane) > 0.0 and start < horizon:
            start += march.schedule.samples * get(places, at.LANE_STEP + lane)
            transmittance = get(ws, at.TRANSMITTANCE + lane)
            # Only if its next sample lies beyond the searched interval: the distance of the next box ignores the
            # Gaussians within that interval.
            if transmittance > march.threshold and start + march.offset * step - base > searched:
                start = _advance(start, empty_until, np.float64(transmittance), march.schedule)
            put(places, at.LANE_START + lane, start)


@njit(cache=True, nogil=True)
def _forward_chunk(
    thread: int,
    threads: int,
    packets: int,
    bvh: Bvh,
    rays: RayArrays,
    march: GrowingMarch,
    workspace: FloatArray,
    integers: IntArray,
    out: FloatArray,
) -> None:
    """Cast every `threads`-th packet."""
    scene, ray_pointers = pointers_of(bvh, rays)
    ws, ints, outputs, box = pointer(workspace), pointer(integers), pointer(out), pointer(bvh.bounds)
    places = pointer(workspace[at.DOUBLES : at.ROWS].view(np.float64))
    single = rays.width == 0
    for packet in range(thread, packets, threads):
        if _open_packet(ws, ints, places, ray_pointers, packet, box, march):
            while _set_steps(ws, places, march):
                slab = _enter_slab(ws, places, march, single)
                if fill_slab(ws, ints, scene, 0, slab, False) > 0:
                    composite(ws, 0, get(ints, at.LOW_ROW), get(ints, at.HIGH_ROW), slab, single)
                _leave_slab(ws, places, march)
        store_outputs(ws, ints, outputs, packet, single)


@njit(cache=True, nogil=True)
def _backward_chunk(
    thread: int,
    threads: int,
    packets: int,
    bvh: Bvh,
    rays: RayArrays,
    march: GrowingMarch,
    workspace: FloatArray,
    integers: IntArray,
    out: FloatArray,
    grad_out: FloatArray,
    totals: FloatArray,
) -> None:
    """Differentiate every `threads`-th packet; add to this thread's own sums [M, 16]."""
    scene, ray_pointers = pointers_of(bvh, rays)
    ws, ints, outputs, gradients = pointer(workspace), pointer(integers), pointer(out), pointer(grad_out)
    places, box = pointer(workspace[at.DOUBLES : at.ROWS].view(np.float64)), pointer(bvh.bounds)
    total_pointer = pointer(totals)
    single = rays.width == 0
    for packet in range(thread, packets, threads):
        if not _open_packet(ws, ints, places, ray_pointers, packet, box, march):
            continue
        open_gradients(ws, ints, outputs, gradients)
        while _set_steps(ws, places, march):
            slab = _enter_slab(ws, places, march, single)
            hits = fill_slab(ws, ints, scene, 0, slab, True)
            if hits > 0:
                composite_gradients(ws, 0, get(ints, at.LOW_ROW), get(ints, at.HIGH_ROW), slab, single)
                differentiate_slab(ws, ints, scene, 0, slab, hits, total_pointer)
            _leave_slab(ws, places, march)


def _march(rays: RayArrays, settings: CastSettings) -> GrowingMarch:
    schedule = step_schedule(settings)
    return GrowingMarch(
        schedule,
        float(settings.sample_offset),
        np.float32(settings.transmittance_threshold),
        np.float32(settings.density_threshold),
        schedule.samples // LANES if rays.width == 0 else schedule.samples,
    )


def cast_forward(bvh: Bvh, rays: RayArrays, settings: CastSettings) -> FloatArray:
    """`march.forward_with` for the adaptive step."""
    return forward_with(_forward_chunk, _march(rays, settings), bvh, rays)


def cast_backward(
    bvh: Bvh, rays: RayArrays, settings: CastSettings, out: FloatArray, grad_out: FloatArray, num_gaussians: int
) -> FloatArray:
    """`march.backward_with` for the adaptive step."""
    return backward_with(_backward_chunk, _march(rays, settings), bvh, rays, out, grad_out, num_gaussians)
