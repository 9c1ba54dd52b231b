"""Packets of 16 lanes: how rays are laid out for the CPU kernels, and which part of them a slab covers.

A packet is 4x4 neighbouring pixels when the rays form an image (one ray a lane), else 16 neighbouring samples of one
ray (lane i holds samples i, i + 16, ...). Row j of a packet holds sample j of every lane, at distance `pitch` from row
j - 1. The packet's own origins lie where its first lane enters the Gaussians' bounding box: differences of large
coordinates would cost float32 its digits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ns_support.kernels.arrays import FloatArray, IntArray
from ns_support.kernels.simd import (
    LANES,
    Pointer,
    Vector,
    any_lane,
    get,
    load,
    maximum,
    minimum,
    put,
    reduce_max,
    reduce_min,
    splat,
    store,
    where,
)

TILE = 4  # a packet of an image is TILE x TILE pixels
FAR = np.float32(3e38)
_NEVER = 1e30

# Offsets into a thread's workspace, in floats: what a lane carries, then the rows of the slab.
OX, OY, OZ, DX, DY, DZ = (LANES * i for i in range(6))
LOCAL = LANES * 6  # distance of row 0 from the packet's own origin
WORLD = LANES * 7  # distance of row 0 from the ray's origin
BEGIN, END = LANES * 8, LANES * 9  # rows that hold a sample of this lane
T = LANES * 10  # transmittance
R, G, B, DEPTH = (LANES * i for i in range(11, 15))
GR, GG, GB, GDEPTH = (LANES * i for i in range(15, 19))  # gradients of the outputs
LATER = LANES * 19  # gradient times what is still to come along the ray
IDLE = LANES * 20  # 0 where the lane is still marching in this slab, else infinity
SCAN = LANES * 21
# The cone around the packet's rays, 3 floats each: largest and least origin, inverse of the largest and of the least
# direction; then the slab's first and last distance.
CONE = LANES * 22
CONE_NEAR, CONE_FAR = CONE + 12, CONE + 13
NEXT = LANES * 23  # distances behind the slab at which there is something again; the least of them counts
# Where the step grows (see `growing`): each lane's step and pitch, and 64 numbers of twice the width.
STEPS, PITCHES = LANES * 24, LANES * 25
PLACES = LANES * 26
ROWS = LANES * 34
# A row: sigma and E = sum f c; in the backward pass P and Q take the first two places.
SIGMA, ER, EG, EB = (LANES * i for i in range(4))
P, Q = SIGMA, ER
ROW_SIZE = LANES * 4


class RayArrays(NamedTuple):
    """R rays as arrays, and how to group them.

    Attributes:
        origins: [R, 3] float32.
        directions: [R, 3] float32, unit length.
        nears: [R] float32.
        ends: [R] int32, samples of each ray; where the step grows float32, the distance at which it ends.
        width: pixels of an image row when the rays are an image, row by row; 0 for rays of no order.
    """

    origins: FloatArray
    directions: FloatArray
    nears: FloatArray
    ends: IntArray | FloatArray
    width: int


class RayPointers(NamedTuple):
    """`RayArrays` inside the kernels."""

    origins: Pointer
    directions: Pointer
    nears: Pointer
    ends: Pointer
    number: int
    width: int


class March(NamedTuple):
    """The settings as the kernels want them; lengths as in `CastSettings`."""

    step: float
    offset: float
    dt: np.float32 | Vector  # the step again, or that of each lane
    pitch: np.float32 | Vector  # distance between the rows of a lane
    threshold: np.float32  # of the transmittance
    eps: np.float32
    slab: int  # rows of a slab


@njit(cache=True, nogil=True)
def box_interval(rays: RayPointers, ray: int, box: Pointer) -> tuple[float, float]:
    """Distances at which a ray enters and leaves a box; infinity before minus infinity where it misses."""
    enter, leave = -np.inf, np.inf
    for i in range(3):
        origin, direction = np.float64(get(rays.origins, 3 * ray + i)), np.float64(get(rays.directions, 3 * ray + i))
        lower, upper = np.float64(get(box, i)), np.float64(get(box, 3 + i))
        if direction == 0.0:
            if origin < lower or origin > upper:
                return np.inf, -np.inf
        else:
            a, b = (lower - origin) / direction, (upper - origin) / direction
            enter, leave = max(enter, float(min(a, b))), min(leave, float(max(a, b)))
    if not enter <= leave:
        return np.inf, -np.inf
    return enter, leave


@njit(cache=True, nogil=True)
def _sample_range(rays: RayPointers, ray: int, box: Pointer, march: March) -> tuple[int, int]:
    """First and one past the last sample of a ray inside a box, rounded outwards."""
    near = np.float64(get(rays.nears, ray))
    enter, leave = box_interval(rays, ray, box)
    if not enter <= leave:
        return 0, 0
    first = max(0.0, np.floor((enter - near) / march.step - march.offset))
    last = min(np.float64(get(rays.ends, ray)), np.ceil((leave - near) / march.step - march.offset) + 1.0)
    if not first < last:
        return 0, 0
    return int(first), int(last)


@njit(cache=True, nogil=True)
def set_lane(ws: Pointer, lane: int, rays: RayPointers, ray: int, start: float, local: float) -> None:
    """Put a ray into a lane: the origin moves to distance `start`, row 0 lies `local` behind that."""
    for i in range(3):
        direction = np.float64(get(rays.directions, 3 * ray + i))
        put(ws, OX + LANES * i + lane, np.float64(get(rays.origins, 3 * ray + i)) + start * direction)
        put(ws, DX + LANES * i + lane, direction)
    put(ws, LOCAL + lane, local)
    put(ws, WORLD + lane, start + local)


@njit(cache=True, nogil=True)
def tile_ray(rays: RayPointers, packet: int, lane: int) -> int:
    """The ray of a lane of a tile of pixels; -1 beyond the image's edge."""
    tiles = (rays.width + TILE - 1) // TILE
    y, x = packet // tiles * TILE + lane // TILE, packet % tiles * TILE + lane % TILE
    return y * rays.width + x if y < rays.number // rays.width and x < rays.width else -1


@njit(cache=True, nogil=True)
def _open_tile(ws: Pointer, ids: Pointer, rays: RayPointers, packet: int, box: Pointer, march: March) -> int:
    """Load a tile of pixels, one a lane, and return the number of rows."""
    first, last = 2**62, 0
    for lane in range(LANES):
        begin, end = 0, 0
        ray = tile_ray(rays, packet, lane)
        put(ids, lane, ray)
        if ray >= 0:
            begin, end = _sample_range(rays, ray, box, march)
        put(ids, LANES + lane, begin)
        put(ids, 2 * LANES + lane, end)
        if begin < end:
            first, last = min(first, begin), max(last, end)
    if last == 0:
        first = 0
    for lane in range(LANES):
        ray = max(get(ids, lane), 0)
        begin, end = get(ids, LANES + lane), get(ids, 2 * LANES + lane)
        start = np.float64(get(rays.nears, ray)) + (first + march.offset) * march.step
        set_lane(ws, lane, rays, ray, start, 0.0)
        put(ws, BEGIN + lane, begin - first if begin < end else 0)
        put(ws, END + lane, end - first if begin < end else 0)
    return last - first


@njit(cache=True, nogil=True)
def _open_ray(ws: Pointer, ids: Pointer, rays: RayPointers, ray: int, box: Pointer, march: March) -> int:
    """Load one ray, 16 samples a row, and return the number of rows."""
    begin, end = _sample_range(rays, ray, box, march)
    start = np.float64(get(rays.nears, ray)) + (begin + march.offset) * march.step
    for lane in range(LANES):
        put(ids, lane, ray)
        set_lane(ws, lane, rays, ray, start, lane * march.step)
        put(ws, BEGIN + lane, 0)
        put(ws, END + lane, max(end - begin - lane + LANES - 1, 0) // LANES)
    return (end - begin + LANES - 1) // LANES


@njit(cache=True, nogil=True)
def open_cone(ws: Pointer) -> None:
    """Bounds of the rays: at distance t their box is [least origin + t least direction, largest + t largest]."""
    active = load(ws, BEGIN) < load(ws, END)
    for i in range(3):
        origin, direction = load(ws, OX + LANES * i), load(ws, DX + LANES * i)
        put(ws, CONE + i, reduce_max(where(active, origin, -FAR)))
        put(ws, CONE + 3 + i, reduce_min(where(active, origin, FAR)))
        largest = np.float64(reduce_max(where(active, direction, -FAR)))
        least = np.float64(reduce_min(where(active, direction, FAR)))
        # Where a bound stands still, the inverse is so large that being on the wrong side of it means never: 0 counts
        # as rising for the upper bound and as falling for the lower one, which then only ever delays the entry.
        put(ws, CONE + 6 + i, 1.0 / largest if abs(largest) > 1e-20 else _NEVER)
        put(ws, CONE + 9 + i, 1.0 / least if abs(least) > 1e-20 else -_NEVER)


@njit(cache=True, nogil=True)
def open_packet(ws: Pointer, ids: Pointer, rays: RayPointers, packet: int, bounds: Pointer, march: March) -> int:
    """Load a packet's lanes.

    Args:
        ws: the thread's workspace.
        ids: [48] integers; the first 16 become the lanes' rays, -1 for a lane beyond the image's edge.
        rays: all rays.
        packet: which packet.
        bounds: lower and upper corner of what there is to see.
        march: the settings.

    Returns:
        The number of rows; 0 when no lane meets the box.
    """
    if rays.width > 0:
        rows = _open_tile(ws, ids, rays, packet, bounds, march)
    else:
        rows = _open_ray(ws, ids, rays, packet, bounds, march)
    if rows > 0:
        open_cone(ws)
    begin_outputs(ws)
    return rows


@njit(cache=True, nogil=True)
def begin_outputs(ws: Pointer) -> None:
    """Full transmittance, no colour and no depth in every lane."""
    store(ws, T, splat(1.0))
    store(ws, R, splat(0.0))
    store(ws, G, splat(0.0))
    store(ws, B, splat(0.0))
    store(ws, DEPTH, splat(0.0))


@njit(cache=True, nogil=True)
def enter_slab(ws: Pointer, row: int, march: March) -> bool:
    """Mark idle lanes and set the slab's distances; False when no lane has a sample that counts."""
    begin = maximum(load(ws, BEGIN), np.float32(row))
    end = minimum(load(ws, END), np.float32(row + march.slab))
    marching = (begin < end) & (load(ws, T) > march.threshold)
    store(ws, IDLE, where(marching, 0.0, np.float32(np.inf)))
    # A row's samples lie up to pitch - dt behind its first; a hundredth of a step covers the rounding.
    near, slack = np.float32(row) * march.pitch, np.float32(0.01) * march.dt
    put(ws, CONE_NEAR, near - slack)
    put(ws, CONE_FAR, near + np.float32(march.slab - 1) * march.pitch + (march.pitch - march.dt) + slack)
    return any_lane(marching)


@njit(cache=True, nogil=True)
def next_row(ws: Pointer, row: int, march: March) -> int:
    """The row to go on from behind a slab that was searched: empty space is skipped."""
    distance = reduce_min(load(ws, NEXT)) - (march.pitch - march.dt)
    rows = np.floor(distance / march.pitch - np.float32(0.01))
    return max(row + march.slab, int(min(rows, np.float32(2**30))))


@njit(cache=True, nogil=True)
def finished(ws: Pointer, row: int, march: March) -> bool:
    """Whether no lane has a sample in this row or behind that could still contribute."""
    return not any_lane((load(ws, END) > np.float32(row)) & (load(ws, T) > march.threshold))
