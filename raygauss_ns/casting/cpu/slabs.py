"""The Gaussians of a slab: found in the BVH, projected on the packet's lanes, added to its rows.

No Gaussian is dropped: each is added as it is found. The candidates of a slab that has more of them than the list holds
are processed in several batches.
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
from raygauss_ns.casting.cpu import layout as at
from raygauss_ns.casting.cpu.bvh import RECORD_SIZE
from raygauss_ns.casting.cpu.packets import FAR, March

MAX_BLOCK = 12  # rows after which a Gaussian's profile is computed afresh, see `start_block`


class Scene(NamedTuple):
    """`Bvh` inside the kernels; `depth` is the number of levels."""

    records: Pointer
    squared_cutoff: Pointer
    boxes: Pointer
    levels: Pointer
    depth: int


@njit(cache=True, nogil=True)
def _meet(ws: Pointer, scene: Scene, block: int, leaf: bool) -> int:
    """Which of a block's 16 boxes the packet's cone meets within the slab, a bit each.

    Boxes beyond the slab update `NEXT_DISTANCE`. At distance t the cone's cross-section overlaps a box if for every
    axis the largest origin + t direction is no less than the box's lower corner, and the least no greater than its
    upper corner: six bounds on t.
    """
    record_start = block * (6 * LANES)
    far = get(ws, at.CONE_FAR)
    enter, leave = splat(get(ws, at.CONE_NEAR)), splat(FAR)
    for i in range(3):
        inverse = get(ws, at.CONE + 6 + i)
        bound = (load(scene.boxes, record_start + LANES * i) - get(ws, at.CONE + i)) * inverse
        if inverse > 0.0:
            enter = maximum(enter, bound)
        else:
            leave = minimum(leave, bound)
        inverse = get(ws, at.CONE + 9 + i)
        bound = (load(scene.boxes, record_start + LANES * (3 + i)) - get(ws, at.CONE + 3 + i)) * inverse
        if inverse > 0.0:
            leave = minimum(leave, bound)
        else:
            enter = maximum(enter, bound)
    met = enter <= leave
    # A leaf's box may extend beyond the slab's end. For an inner node, its children decide.
    behind = met & (leave > far) if leaf else met & (enter > far)
    store(ws, at.NEXT_DISTANCE, minimum(load(ws, at.NEXT_DISTANCE), where(behind, maximum(enter, far), FAR)))
    return bits(met & (enter <= far))


@njit(cache=True, nogil=True)
def begin_search(ws: Pointer, ints: Pointer, scene: Scene) -> None:
    """Start a traversal at the root of the BVH."""
    top = scene.depth - 1
    store(ws, at.NEXT_DISTANCE, splat(FAR))
    put(ints, at.SEARCH_LEVEL, top)
    put(ints, at.SEARCH_BLOCK + top, 0)
    put(ints, at.SEARCH_CHILDREN + top, _meet(ws, scene, get(scene.levels, top), top == 0))


@njit(cache=True, nogil=True)
def collect(ws: Pointer, ints: Pointer, scene: Scene) -> int:
    """Continue the traversal until the list of candidates is full or it has ended (`SEARCH_LEVEL` is then the depth).

    Returns:
        The number of records found.
    """
    found, level = 0, int(get(ints, at.SEARCH_LEVEL))
    while level < scene.depth and found + LANES <= at.MAX_CANDIDATES:
        children = np.int64(get(ints, at.SEARCH_CHILDREN + level))
        if level == 0:
            first = get(ints, at.SEARCH_BLOCK) * LANES
            while children != 0:
                put(ints, at.CANDIDATE + found, first + lowest_bit(children))
                found += 1
                children &= children - 1
        if children == 0:
            level += 1
        else:
            child = get(ints, at.SEARCH_BLOCK + level) * LANES + lowest_bit(children)
            put(ints, at.SEARCH_CHILDREN + level, children & (children - 1))
            level -= 1
            put(ints, at.SEARCH_BLOCK + level, child)
            put(ints, at.SEARCH_CHILDREN + level, _meet(ws, scene, get(scene.levels, level) + child, level == 0))
    put(ints, at.SEARCH_LEVEL, level)
    return found


@njit(cache=True, nogil=True)
def project(ws: Pointer, ints: Pointer, scene: Scene, record: int, hit: int, slot: int, row: int, march: March) -> bool:
    """Project a Gaussian on each lane: |A (x - mu)|^2 = h2 + bb (t - t*)^2 at distance t from the packet's origin.

    Computed from the point of closest approach: the discriminant of the quadratic loses all digits for a small Gaussian
    far away. Stores t* (relative to the lane's row 0), bb and h2 in the slot, and for the hit the first and last row of
    the slab in which any lane is inside the support.

    Returns:
        Whether there is such a row.
    """
    record_start = record * RECORD_SIZE
    records = scene.records
    squared_cutoff = get(scene.squared_cutoff, record)
    a00, a01, a02 = get(records, record_start + 3), get(records, record_start + 4), get(records, record_start + 5)
    a10, a11, a12 = get(records, record_start + 6), get(records, record_start + 7), get(records, record_start + 8)
    a20, a21, a22 = get(records, record_start + 9), get(records, record_start + 10), get(records, record_start + 11)
    x = load(ws, at.ORIGIN_X) - get(records, record_start)
    y = load(ws, at.ORIGIN_Y) - get(records, record_start + 1)
    z = load(ws, at.ORIGIN_Z) - get(records, record_start + 2)
    dx, dy, dz = load(ws, at.DIRECTION_X), load(ws, at.DIRECTION_Y), load(ws, at.DIRECTION_Z)
    u0, u1, u2 = x * a00 + y * a01 + z * a02, x * a10 + y * a11 + z * a12, x * a20 + y * a21 + z * a22
    b0, b1, b2 = dx * a00 + dy * a01 + dz * a02, dx * a10 + dy * a11 + dz * a12, dx * a20 + dy * a21 + dz * a22
    bb = b0 * b0 + b1 * b1 + b2 * b2
    inverse = 1.0 / bb
    closest = -(u0 * b0 + u1 * b1 + u2 * b2) * inverse
    u0, u1, u2 = u0 + closest * b0, u1 + closest * b1, u2 + closest * b2
    h2 = u0 * u0 + u1 * u1 + u2 * u2 + load(ws, at.IDLE)
    inside = h2 < squared_cutoff
    if not any_lane(inside):
        return False
    closest = closest - load(ws, at.LOCAL_DISTANCE)
    half = sqrt(maximum(squared_cutoff - h2, 0.0) * inverse)
    per_row = np.float32(1.0) / march.pitch
    enter = where(inside, (closest - half) * per_row, FAR)
    leave = where(inside, (closest + half) * per_row, -FAR)
    first = max(np.ceil(min(reduce_min(enter), np.float32(2e9))), np.float32(row))
    last = min(np.floor(reduce_max(leave)), np.float32(row + march.slab - 1))
    if last < first:
        return False
    store(ws, slot + at.HIT_CLOSEST, closest)
    store(ws, slot + at.HIT_BB, bb)
    store(ws, slot + at.HIT_H2, h2)
    store(ws, slot + at.HIT_ENTER, enter)
    store(ws, slot + at.HIT_LEAVE, leave)
    put(ints, at.HIT_RECORD + hit, record)
    put(ints, at.HIT_FIRST + hit, np.int32(first))
    put(ints, at.HIT_LAST + hit, np.int32(last))
    # A block spans at most 6 standard deviations: if it starts at the border of the support, the profile at its end is
    # still a normal float.
    steepest = reduce_max(where(inside, bb * (march.pitch * march.pitch), 0.0))
    rows = np.float32(6.0) / np.sqrt(max(steepest, np.float32(1e-12)))
    put(ints, at.HIT_BLOCK + hit, np.int32(max(min(rows, np.float32(MAX_BLOCK)), np.float32(1.0))))
    return True


@njit(cache=True, nogil=True)
def start_block(ws: Pointer, slot: int, row: int, rows: int, march: March) -> tuple[Vector, Vector]:
    """A Gaussian's profile at a row, relative to its peak, and the factor to the next row.

    Along a ray the exponent is quadratic in the row, so that f_{j+1} = f_j g_j and g_{j+1} = g_j e^(-bb pitch^2): two
    products per row instead of an exponential. The rounding error grows with the square of the number of rows; after 12
    it is 4e-6.

    Returns:
        f and g. f is 0 in lanes that are outside the support in all rows of the block: no overflow, no denormals.
    """
    bb = load(ws, slot + at.HIT_BB)
    tau = np.float32(row) * march.pitch - load(ws, slot + at.HIT_CLOSEST)
    f = exp((tau * tau * bb + load(ws, slot + at.HIT_H2)) * -0.5)
    g = exp((tau + np.float32(0.5) * march.pitch) * bb * -march.pitch)
    met = (load(ws, slot + at.HIT_ENTER) < np.float32(row + rows)) & (load(ws, slot + at.HIT_LEAVE) >= np.float32(row))
    return where(met, f, 0.0), where(met, g, 0.0)


@njit(cache=True, nogil=True)
def _accumulate(ws: Pointer, ints: Pointer, scene: Scene, hit: int, slot: int, row: int, march: March) -> None:
    """Add a Gaussian's density and density times colour to the slab's rows."""
    first, last, block = get(ints, at.HIT_FIRST + hit), get(ints, at.HIT_LAST + hit), get(ints, at.HIT_BLOCK + hit)
    record_start = get(ints, at.HIT_RECORD + hit) * RECORD_SIZE
    density = get(scene.records, record_start + 12)
    red, green, blue = (
        get(scene.records, record_start + 13),
        get(scene.records, record_start + 14),
        get(scene.records, record_start + 15),
    )
    bend = exp(load(ws, slot + at.HIT_BB) * (-march.pitch * march.pitch))
    for start in range(first, last + 1, block):
        profile, slope = start_block(ws, slot, start, block, march)
        profile = profile * density
        for j in range(start, min(start + block, last + 1)):
            f = where(profile > march.eps, profile, 0.0)
            to = at.ROWS + (j - row) * at.ROW_SIZE
            store(ws, to + at.SIGMA, load(ws, to + at.SIGMA) + f)
            store(ws, to + at.EMISSION_R, load(ws, to + at.EMISSION_R) + f * red)
            store(ws, to + at.EMISSION_G, load(ws, to + at.EMISSION_G) + f * green)
            store(ws, to + at.EMISSION_B, load(ws, to + at.EMISSION_B) + f * blue)
            profile = profile * slope
            slope = slope * bend


@njit(cache=True, nogil=True)
def _widen(ws: Pointer, ints: Pointer, first: int, last: int, row: int) -> None:
    """Extend the slab's rows `LOW_ROW` to `HIGH_ROW` to include `first` to `last`; new rows are cleared."""
    low, high = get(ints, at.LOW_ROW), get(ints, at.HIGH_ROW)
    if high < low:
        low, high = first, first - 1
    for j in range(first, low):
        for i in range(0, at.ROW_SIZE, LANES):
            store(ws, at.ROWS + (j - row) * at.ROW_SIZE + i, splat(0.0))
    for j in range(high + 1, last + 1):
        for i in range(0, at.ROW_SIZE, LANES):
            store(ws, at.ROWS + (j - row) * at.ROW_SIZE + i, splat(0.0))
    put(ints, at.LOW_ROW, min(low, first))
    put(ints, at.HIGH_ROW, max(high, last))


@njit(cache=True, nogil=True)
def fill_slab(ws: Pointer, ints: Pointer, scene: Scene, row: int, march: March, keep: bool) -> int:
    """Fill the slab's rows `LOW_ROW` to `HIGH_ROW`; there are none if no Gaussian was hit.

    Args:
        ws: the thread's workspace.
        ints: the thread's integers.
        scene: the Gaussians.
        row: the slab's first row.
        march: the settings.
        keep: whether each hit's projection is stored in its own slot, for the backward pass.

    Returns:
        The number of Gaussians hit. If it exceeds `MAX_HITS`, not all of them were kept.
    """
    hits = 0
    slots = at.ROWS + march.slab * at.ROW_SIZE
    put(ints, at.LOW_ROW, row)
    put(ints, at.HIGH_ROW, row - 1)
    begin_search(ws, ints, scene)
    while get(ints, at.SEARCH_LEVEL) < scene.depth:
        for i in range(collect(ws, ints, scene)):
            hit = min(hits, at.MAX_HITS) if keep else 0
            slot = slots + hit * at.HIT_SIZE
            if project(ws, ints, scene, get(ints, at.CANDIDATE + i), hit, slot, row, march):
                _widen(ws, ints, get(ints, at.HIT_FIRST + hit), get(ints, at.HIT_LAST + hit), row)
                _accumulate(ws, ints, scene, hit, slot, row, march)
                hits += 1
    return hits
