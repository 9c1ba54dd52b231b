"""The Gaussians of a slab: found in the hierarchy, projected on the packet's lanes, added to its rows.

Nothing is dropped: Gaussians are added as they are found, and a slab that meets more than the list of hits holds is
worked off in turns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ns_support.kernels.simd import (
    LANES,
    Pointer,
    Vector,
    any_lane,
    bits,
    exp,
    get,
    load,
    lowest_bit,
    maximum,
    minimum,
    put,
    reduce_max,
    reduce_min,
    splat,
    sqrt,
    store,
    where,
)
from raygauss_ns.casting.cpu.bvh import MAX_LEVELS, RECORD_SIZE
from raygauss_ns.casting.cpu.packets import (
    CONE,
    CONE_FAR,
    CONE_NEAR,
    DX,
    DY,
    DZ,
    EB,
    EG,
    ER,
    FAR,
    IDLE,
    LOCAL,
    NEXT,
    OX,
    OY,
    OZ,
    ROW_SIZE,
    ROWS,
    SIGMA,
    March,
)

MAX_HITS = 1024  # hits of a slab that the backward pass finds without a second search
# Floats of a hit's projection: |A (x - mu)|^2 = h2 + bb (t - t*)^2, and each lane's rows inside the support.
CLOSEST, BB, H2, ENTER, LEAVE = (LANES * i for i in range(5))
HIT_SIZE = LANES * 5
# A thread's integers: three for each lane (see `open_packet`); where the search of the hierarchy stands; the slab's
# first and last row with anything in it; the candidates' records; record, first row, last row and block of each hit.
LEVEL = 3 * LANES
BLOCK_OF = LEVEL + 1  # the block of each level that is being worked off
CHILDREN_OF = BLOCK_OF + MAX_LEVELS  # its children that are still to be visited, a bit each
LOW, HIGH = CHILDREN_OF + MAX_LEVELS, CHILDREN_OF + MAX_LEVELS + 1
CANDIDATE = HIGH + 1
MAX_CANDIDATES = 256
RECORD = CANDIDATE + MAX_CANDIDATES
FIRST, LAST, BLOCK, NUM_INTS = (RECORD + i * (MAX_HITS + 1) for i in range(1, 5))
MAX_BLOCK = 12  # rows after which a Gaussian's profile is computed afresh, see `start_block`


class Scene(NamedTuple):
    """`Bvh` inside the kernels."""

    records: Pointer
    reach: Pointer
    boxes: Pointer
    levels: Pointer
    depth: int


@njit(cache=True, nogil=True)
def _meet(ws: Pointer, scene: Scene, block: int, leaf: bool) -> int:
    """Which of a block's 16 boxes the packet's cone meets within the slab, a bit each; `NEXT` learns what lies behind.

    At distance t the cone's cross-section overlaps a box when for every axis origin + t direction, at its largest, is
    no less than the box's lower corner, and at its least no greater than the upper one: six bounds on t.
    """
    at = block * (6 * LANES)
    far = get(ws, CONE_FAR)
    enter, leave = splat(get(ws, CONE_NEAR)), splat(FAR)
    for i in range(3):
        inverse = get(ws, CONE + 6 + i)
        bound = (load(scene.boxes, at + LANES * i) - get(ws, CONE + i)) * inverse
        if inverse > 0.0:
            enter = maximum(enter, bound)
        else:
            leave = minimum(leave, bound)
        inverse = get(ws, CONE + 9 + i)
        bound = (load(scene.boxes, at + LANES * (3 + i)) - get(ws, CONE + 3 + i)) * inverse
        if inverse > 0.0:
            leave = minimum(leave, bound)
        else:
            enter = maximum(enter, bound)
    met = enter <= leave
    # What is a leaf may reach over the slab's end; of an inner node the children will tell.
    behind = met & (leave > far) if leaf else met & (enter > far)
    store(ws, NEXT, minimum(load(ws, NEXT), where(behind, maximum(enter, far), FAR)))
    return bits(met & (enter <= far))


@njit(cache=True, nogil=True)
def begin_search(ws: Pointer, ints: Pointer, scene: Scene) -> None:
    """Start at the top of the hierarchy."""
    top = scene.depth - 1
    store(ws, NEXT, splat(FAR))
    put(ints, LEVEL, top)
    put(ints, BLOCK_OF + top, 0)
    put(ints, CHILDREN_OF + top, _meet(ws, scene, get(scene.levels, top), top == 0))


@njit(cache=True, nogil=True)
def collect(ws: Pointer, ints: Pointer, scene: Scene) -> int:
    """Go on searching until the list of candidates is full or nothing is left (`LEVEL` is then the depth).

    Returns:
        How many records were found.
    """
    found, level = 0, int(get(ints, LEVEL))
    while level < scene.depth and found + LANES <= MAX_CANDIDATES:
        children = np.int64(get(ints, CHILDREN_OF + level))
        if level == 0:
            first = get(ints, BLOCK_OF) * LANES
            while children != 0:
                put(ints, CANDIDATE + found, first + lowest_bit(children))
                found += 1
                children &= children - 1
        if children == 0:
            level += 1
        else:
            child = get(ints, BLOCK_OF + level) * LANES + lowest_bit(children)
            put(ints, CHILDREN_OF + level, children & (children - 1))
            level -= 1
            put(ints, BLOCK_OF + level, child)
            put(ints, CHILDREN_OF + level, _meet(ws, scene, get(scene.levels, level) + child, level == 0))
    put(ints, LEVEL, level)
    return found


@njit(cache=True, nogil=True)
def project(ws: Pointer, ints: Pointer, scene: Scene, record: int, hit: int, slot: int, row: int, march: March) -> bool:
    """How each lane passes a Gaussian: |A (x - mu)|^2 = h2 + bb (t - t*)^2 at distance t from the packet's origin.

    By the point of closest approach; the discriminant of the quadratic loses all digits for a small Gaussian far away.
    Leaves t* (less the lane's row 0), bb and h2 in the slot, and with the hit the slab's first and last row in which
    some lane is inside the support.

    Returns:
        Whether there is such a row.
    """
    at = record * RECORD_SIZE
    records = scene.records
    reach = get(scene.reach, record)
    a00, a01, a02 = get(records, at + 3), get(records, at + 4), get(records, at + 5)
    a10, a11, a12 = get(records, at + 6), get(records, at + 7), get(records, at + 8)
    a20, a21, a22 = get(records, at + 9), get(records, at + 10), get(records, at + 11)
    x = load(ws, OX) - get(records, at)
    y = load(ws, OY) - get(records, at + 1)
    z = load(ws, OZ) - get(records, at + 2)
    dx, dy, dz = load(ws, DX), load(ws, DY), load(ws, DZ)
    u0, u1, u2 = x * a00 + y * a01 + z * a02, x * a10 + y * a11 + z * a12, x * a20 + y * a21 + z * a22
    b0, b1, b2 = dx * a00 + dy * a01 + dz * a02, dx * a10 + dy * a11 + dz * a12, dx * a20 + dy * a21 + dz * a22
    bb = b0 * b0 + b1 * b1 + b2 * b2
    inverse = 1.0 / bb
    closest = -(u0 * b0 + u1 * b1 + u2 * b2) * inverse
    u0, u1, u2 = u0 + closest * b0, u1 + closest * b1, u2 + closest * b2
    h2 = u0 * u0 + u1 * u1 + u2 * u2 + load(ws, IDLE)
    inside = h2 < reach
    if not any_lane(inside):
        return False
    closest = closest - load(ws, LOCAL)
    half = sqrt(maximum(reach - h2, 0.0) * inverse)
    per_row = np.float32(1.0) / march.pitch
    enter = where(inside, (closest - half) * per_row, FAR)
    leave = where(inside, (closest + half) * per_row, -FAR)
    first = max(np.ceil(min(reduce_min(enter), np.float32(2e9))), np.float32(row))
    last = min(np.floor(reduce_max(leave)), np.float32(row + march.slab - 1))
    if last < first:
        return False
    store(ws, slot + CLOSEST, closest)
    store(ws, slot + BB, bb)
    store(ws, slot + H2, h2)
    store(ws, slot + ENTER, enter)
    store(ws, slot + LEAVE, leave)
    put(ints, RECORD + hit, record)
    put(ints, FIRST + hit, np.int32(first))
    put(ints, LAST + hit, np.int32(last))
    # A block spans at most 6 standard deviations: its end is still a normal float where its start is at the support's.
    steepest = reduce_max(where(inside, bb * (march.pitch * march.pitch), 0.0))
    rows = np.float32(6.0) / np.sqrt(max(steepest, np.float32(1e-12)))
    put(ints, BLOCK + hit, np.int32(max(min(rows, np.float32(MAX_BLOCK)), np.float32(1.0))))
    return True


@njit(cache=True, nogil=True)
def start_block(ws: Pointer, slot: int, row: int, rows: int, march: March) -> tuple[Vector, Vector]:
    """A Gaussian's profile at a row, relative to its peak, and by how much it changes to the next.

    Along a ray the exponent is quadratic in the row, so that f_{j+1} = f_j g_j and g_{j+1} = g_j e^(-bb pitch^2): two
    products a row in place of an exponential. Rounding grows with the square of the rows; after 12 it is 4e-6.

    Returns:
        f and g. f is 0 in lanes that are outside the support in all of the block's rows: no overflow, no denormals.
    """
    bb = load(ws, slot + BB)
    tau = np.float32(row) * march.pitch - load(ws, slot + CLOSEST)
    f = exp((tau * tau * bb + load(ws, slot + H2)) * -0.5)
    g = exp((tau + np.float32(0.5) * march.pitch) * bb * -march.pitch)
    met = (load(ws, slot + ENTER) < np.float32(row + rows)) & (load(ws, slot + LEAVE) >= np.float32(row))
    return where(met, f, 0.0), where(met, g, 0.0)


@njit(cache=True, nogil=True)
def _accumulate(ws: Pointer, ints: Pointer, scene: Scene, hit: int, slot: int, row: int, march: March) -> None:
    """Add a Gaussian's density and density times colour to the slab's rows."""
    first, last, block = get(ints, FIRST + hit), get(ints, LAST + hit), get(ints, BLOCK + hit)
    at = get(ints, RECORD + hit) * RECORD_SIZE
    density = get(scene.records, at + 12)
    red, green, blue = get(scene.records, at + 13), get(scene.records, at + 14), get(scene.records, at + 15)
    bend = exp(load(ws, slot + BB) * (-march.pitch * march.pitch))
    for start in range(first, last + 1, block):
        profile, slope = start_block(ws, slot, start, block, march)
        profile = profile * density
        for j in range(start, min(start + block, last + 1)):
            f = where(profile > march.eps, profile, 0.0)
            to = ROWS + (j - row) * ROW_SIZE
            store(ws, to + SIGMA, load(ws, to + SIGMA) + f)
            store(ws, to + ER, load(ws, to + ER) + f * red)
            store(ws, to + EG, load(ws, to + EG) + f * green)
            store(ws, to + EB, load(ws, to + EB) + f * blue)
            profile = profile * slope
            slope = slope * bend


@njit(cache=True, nogil=True)
def _widen(ws: Pointer, ints: Pointer, first: int, last: int, row: int) -> None:
    """Make the slab's rows `LOW` to `HIGH` include others, which are cleared."""
    low, high = get(ints, LOW), get(ints, HIGH)
    if high < low:
        low, high = first, first - 1
    for j in range(first, low):
        for i in range(0, ROW_SIZE, LANES):
            store(ws, ROWS + (j - row) * ROW_SIZE + i, splat(0.0))
    for j in range(high + 1, last + 1):
        for i in range(0, ROW_SIZE, LANES):
            store(ws, ROWS + (j - row) * ROW_SIZE + i, splat(0.0))
    put(ints, LOW, min(low, first))
    put(ints, HIGH, max(high, last))


@njit(cache=True, nogil=True)
def fill_slab(ws: Pointer, ints: Pointer, scene: Scene, row: int, march: March, keep: bool) -> int:
    """Fill the slab's rows `LOW` to `HIGH`; there are none where nothing was hit.

    Args:
        ws: the thread's workspace.
        ints: the thread's integers.
        scene: the Gaussians.
        row: the slab's first row.
        march: the settings.
        keep: whether each hit's projection goes into a slot of its own, for the backward pass.

    Returns:
        How many Gaussians were hit. Where that is more than `MAX_HITS`, not all of them were kept.
    """
    hits = 0
    slots = ROWS + march.slab * ROW_SIZE
    put(ints, LOW, row)
    put(ints, HIGH, row - 1)
    begin_search(ws, ints, scene)
    while get(ints, LEVEL) < scene.depth:
        for i in range(collect(ws, ints, scene)):
            hit = min(hits, MAX_HITS) if keep else 0
            slot = slots + hit * HIT_SIZE
            if project(ws, ints, scene, get(ints, CANDIDATE + i), hit, slot, row, march):
                _widen(ws, ints, get(ints, FIRST + hit), get(ints, LAST + hit), row)
                _accumulate(ws, ints, scene, hit, slot, row, march)
                hits += 1
    return hits
