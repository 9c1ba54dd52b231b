"""The caster on a CPU where the step grows: the packets and slabs of `cpu`, a step for each lane and slab.

Within a slab a lane's samples are evenly spaced, so that all that `slabs`, `compositing` and `cpu` do with a slab is
done here too: they are compiled once more, for a `March` whose step and pitch are vectors. Every slab's rows count from
0; what changes from slab to slab is where a lane's row 0 lies.

Rays of a packet whose transmittances differ take steps of different length, and would drift apart until a slab's cone
holds half of the scene. So the rearmost lane sets a horizon, the end of its own slab: a lane that begins behind it
waits for its turn. A ray brings back the same whenever its turn comes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ns_support.kernels.arrays import FloatArray, IntArray
from ns_support.kernels.simd import LANES, Pointer, get, load, pointer, put, reduce_min
from raygauss_ns.casting import steps as rules
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
    BEGIN,
    CONE_FAR,
    CONE_NEAR,
    END,
    IDLE,
    LOCAL,
    NEXT,
    PITCHES,
    PLACES,
    ROWS,
    STEPS,
    WORLD,
    March,
    RayArrays,
    RayPointers,
    T,
    begin_outputs,
    box_interval,
    open_cone,
    set_lane,
    tile_ray,
)
from raygauss_ns.casting.cpu.slabs import HIGH, LOW, fill_slab
from raygauss_ns.casting.steps import Ladder, ladder_of
from raygauss_ns.casting.types import CastSettings

_step_at = njit(nogil=True)(rules.step_at)
_advance = njit(nogil=True)(rules.advance)

# Offsets among the numbers of twice the width: where a lane's slab begins, where its ray ends (distances from the ray's
# origin), its step; where the packet's own origins lie, the horizon.
START, LIMIT, STEP = 0, LANES, 2 * LANES
BASE, HORIZON = 3 * LANES, 3 * LANES + 1


class GrowingMarch(NamedTuple):
    """The settings as the kernels want them.

    Attributes:
        ladder: the rule for the step.
        offset: where in its step a sample sits.
        threshold: of the transmittance.
        eps: of the density.
        slab: rows of a slab: its samples, or where the lanes share a ray a sixteenth of them.
    """

    ladder: Ladder
    offset: float
    threshold: np.float32
    eps: np.float32
    slab: int


@njit(cache=True, nogil=True)
def _place(places: Pointer, lane: int, rays: RayPointers, ray: int, box: Pointer, march: GrowingMarch) -> bool:
    """Put a lane at the slab in which its ray enters a box; False where there is nothing to march through."""
    near, far = np.float64(get(rays.nears, ray)), np.float64(get(rays.ends, ray))
    enter, leave = box_interval(rays, ray, box)
    start, limit = _advance(near, enter, 1.0, march.ladder), min(far, leave)
    put(places, START + lane, start)
    put(places, LIMIT + lane, limit)
    return start < limit


@njit(cache=True, nogil=True)
def _open_packet(
    ws: Pointer, ids: Pointer, places: Pointer, rays: RayPointers, packet: int, box: Pointer, march: GrowingMarch
) -> bool:
    """Load a packet's lanes; False when none of them meets the box."""
    single = rays.width == 0
    base = np.inf
    for lane in range(LANES):
        ray = packet if single else tile_ray(rays, packet, lane)
        put(ids, lane, ray)
        active = ray >= 0 and _place(places, lane, rays, ray, box, march)
        put(ws, BEGIN + lane, 0.0)
        put(ws, END + lane, 1.0 if active else 0.0)
        if active:
            base = min(base, get(places, START + lane))
        else:
            put(places, LIMIT + lane, -np.inf)
    begin_outputs(ws)
    if base == np.inf:
        return False
    put(places, BASE, base)
    for lane in range(LANES):
        set_lane(ws, lane, rays, max(get(ids, lane), 0), base, 0.0)
    open_cone(ws)
    return True


@njit(cache=True, nogil=True)
def _set_steps(ws: Pointer, places: Pointer, march: GrowingMarch) -> bool:
    """Each lane's step, and the horizon; False when no lane has anything left to march through."""
    horizon = np.inf
    for lane in range(LANES):
        start, transmittance = get(places, START + lane), get(ws, T + lane)
        step = 0.0
        if start < get(places, LIMIT + lane) and transmittance > march.threshold:
            step = _step_at(start, np.float64(transmittance), march.ladder)
            horizon = min(horizon, start + march.ladder.samples * step)
        put(places, STEP + lane, step)
    put(places, HORIZON, horizon)
    return horizon < np.inf


@njit(cache=True, nogil=True)
def _enter_slab(ws: Pointer, places: Pointer, march: GrowingMarch, single: bool) -> March:
    """Lay out the rows of the slab of every lane that marches, and make the others idle."""
    horizon, base, samples = get(places, HORIZON), get(places, BASE), march.ladder.samples
    near, far = np.inf, -np.inf
    for lane in range(LANES):
        start, step = get(places, START + lane), get(places, STEP + lane)
        marches = step > 0.0 and start < horizon
        first, rows = base, 0.0
        if marches:
            first = start + (march.offset + (lane if single else 0)) * step
            count = min(np.ceil((get(places, LIMIT + lane) - start) / step - march.offset), float(samples))
            rows = np.ceil((count - lane) / LANES) if single else count
            near = min(near, first - base)
            far = max(far, start + (march.offset + samples - 1) * step - base)
        else:
            step = march.ladder.step  # any number that is none to divide by
        put(ws, STEPS + lane, step)
        put(ws, PITCHES + lane, step * LANES if single else step)
        put(ws, LOCAL + lane, first - base)
        put(ws, WORLD + lane, first)
        put(ws, END + lane, max(rows, 0.0))
        put(ws, IDLE + lane, 0.0 if rows > 0.0 else np.inf)
    slack = 0.01 * march.ladder.step  # covers the rounding
    put(ws, CONE_NEAR, near - slack)
    put(ws, CONE_FAR, far + slack)
    step, offset = march.ladder.step, march.offset
    return March(step, offset, load(ws, STEPS), load(ws, PITCHES), march.threshold, march.eps, march.slab)


@njit(cache=True, nogil=True)
def _leave_slab(ws: Pointer, places: Pointer, march: GrowingMarch) -> None:
    """Go on to the next slab of the lanes that marched, and over whole slabs in which there is nothing."""
    horizon, base, step = get(places, HORIZON), get(places, BASE), march.ladder.step
    searched = np.float64(get(ws, CONE_FAR))
    empty_until = base + np.float64(reduce_min(load(ws, NEXT))) - 0.01 * step
    for lane in range(LANES):
        start = get(places, START + lane)
        if get(places, STEP + lane) > 0.0 and start < horizon:
            start += march.ladder.samples * get(places, STEP + lane)
            transmittance = get(ws, T + lane)
            # Its next sample must lie behind what was searched: up to there the slab's Gaussians are not "next".
            if transmittance > march.threshold and start + march.offset * step - base > searched:
                start = _advance(start, empty_until, np.float64(transmittance), march.ladder)
            put(places, START + lane, start)


@njit(cache=True, nogil=True)
def _forward_share(
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
    places = pointer(workspace[PLACES:ROWS].view(np.float64))
    single = rays.width == 0
    for packet in range(thread, packets, threads):
        if _open_packet(ws, ints, places, ray_pointers, packet, box, march):
            while _set_steps(ws, places, march):
                slab = _enter_slab(ws, places, march, single)
                if fill_slab(ws, ints, scene, 0, slab, False) > 0:
                    composite(ws, 0, get(ints, LOW), get(ints, HIGH), slab, single)
                _leave_slab(ws, places, march)
        store_outputs(ws, ints, outputs, packet, single)


@njit(cache=True, nogil=True)
def _backward_share(
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
    """Differentiate every `threads`-th packet into this thread's own sums [M, 16]."""
    scene, ray_pointers = pointers_of(bvh, rays)
    ws, ints, outputs, gradients = pointer(workspace), pointer(integers), pointer(out), pointer(grad_out)
    places, box = pointer(workspace[PLACES:ROWS].view(np.float64)), pointer(bvh.bounds)
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
                composite_gradients(ws, 0, get(ints, LOW), get(ints, HIGH), slab, single)
                differentiate_slab(ws, ints, scene, 0, slab, hits, total_pointer)
            _leave_slab(ws, places, march)


def _march(rays: RayArrays, settings: CastSettings) -> GrowingMarch:
    ladder = ladder_of(settings)
    return GrowingMarch(
        ladder,
        float(settings.sample_offset),
        np.float32(settings.transmittance_threshold),
        np.float32(settings.density_threshold),
        ladder.samples // LANES if rays.width == 0 else ladder.samples,
    )


def cast_forward(bvh: Bvh, rays: RayArrays, settings: CastSettings) -> FloatArray:
    """`cpu.forward_with` for a step that grows."""
    return forward_with(_forward_share, _march(rays, settings), bvh, rays)


def cast_backward(
    bvh: Bvh, rays: RayArrays, settings: CastSettings, out: FloatArray, grad_out: FloatArray, num_gaussians: int
) -> FloatArray:
    """`cpu.backward_with` for a step that grows."""
    return backward_with(_backward_share, _march(rays, settings), bvh, rays, out, grad_out, num_gaussians)
