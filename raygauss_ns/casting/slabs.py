"""The Gaussians of a slab: found in the hierarchy, projected on the packet's lanes, added to its rows.

Nothing is dropped: Gaussians are added as they are found, and a slab that meets more than the list of hits holds is
worked off in turns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from raygauss_ns.casting.bvh import RECORD_SIZE
from raygauss_ns.casting.packets import (
    BOX,
    DX,
    DY,
    DZ,
    EB,
    EG,
    ER,
    FAR,
    IDLE,
    LOCAL,
    OX,
    OY,
    OZ,
    ROW_SIZE,
    ROWS,
    SIGMA,
    March,
)
from raygauss_ns.casting.simd import (
    LANES,
    Pointer,
    Vector,
    exp,
    get,
    load,
    maximum,
    put,
    reduce_max,
    reduce_min,
    splat,
    sqrt,
    store,
    where,
)

MAX_HITS = 1024  # Gaussians collected at a time
# Floats of a hit's projection: |A (x - mu)|^2 = h2 + bb (t - t*)^2, and each lane's rows inside the support.
CLOSEST, BB, H2, ENTER, LEAVE = (LANES * i for i in range(5))
HIT_SIZE = LANES * 5
# A thread's integers: three for each lane (see `open_packet`), then record, first row, last row and block of each hit.
RECORD = 3 * LANES
FIRST, LAST, BLOCK, NUM_INTS = (RECORD + i * MAX_HITS for i in range(1, 5))
MAX_BLOCK = 12  # rows after which a Gaussian's profile is computed afresh, see `start_block`


class Scene(NamedTuple):
    """`Bvh` inside the kernels."""

    records: Pointer
    reach: Pointer
    boxes: Pointer
    links: Pointer
    nodes: int


@njit(cache=True, nogil=True)
def collect(ws: Pointer, ints: Pointer, scene: Scene, node: int) -> tuple[int, int]:
    """Records whose leaf meets the slab's box, from a node on, until all are found or the list is full.

    Returns:
        How many, and the node to go on from.
    """
    found = 0
    lower_x, lower_y, lower_z = get(ws, BOX), get(ws, BOX + 1), get(ws, BOX + 2)
    upper_x, upper_y, upper_z = get(ws, BOX + 3), get(ws, BOX + 4), get(ws, BOX + 5)
    while node < scene.nodes and found + 16 <= MAX_HITS:
        at = 6 * node
        if (
            get(scene.boxes, at) <= upper_x
            and get(scene.boxes, at + 3) >= lower_x
            and get(scene.boxes, at + 1) <= upper_y
            and get(scene.boxes, at + 4) >= lower_y
            and get(scene.boxes, at + 2) <= upper_z
            and get(scene.boxes, at + 5) >= lower_z
        ):
            packed = get(scene.links, 2 * node + 1)
            for record in range(packed >> 4, (packed >> 4) + (packed & 15)):
                put(ints, RECORD + found, record)
                found += 1
            node += 1
        else:
            node = get(scene.links, 2 * node)
    return found, node


@njit(cache=True, nogil=True)
def project(ws: Pointer, ints: Pointer, scene: Scene, hit: int, slot: int, row: int, march: March) -> None:
    """How each lane passes a Gaussian: |A (x - mu)|^2 = h2 + bb (t - t*)^2 at distance t from the packet's origin.

    By the point of closest approach; the discriminant of the quadratic loses all digits for a small Gaussian far away.
    Leaves t* (less the lane's row 0), bb and h2 in the slot, and with the hit the slab's first and last row in which
    some lane is inside the support.
    """
    at = get(ints, RECORD + hit) * RECORD_SIZE
    records = scene.records
    reach = get(scene.reach, get(ints, RECORD + hit))
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
    closest = closest - load(ws, LOCAL)
    inside = h2 < reach
    half = sqrt(maximum(reach - h2, 0.0) * inverse)
    per_row = np.float32(1.0) / march.pitch
    enter = where(inside, (closest - half) * per_row, FAR)
    leave = where(inside, (closest + half) * per_row, -FAR)
    store(ws, slot + CLOSEST, closest)
    store(ws, slot + BB, bb)
    store(ws, slot + H2, h2)
    store(ws, slot + ENTER, enter)
    store(ws, slot + LEAVE, leave)
    first = max(np.ceil(min(reduce_min(enter), np.float32(2e9))), np.float32(row))
    last = min(np.floor(reduce_max(leave)), np.float32(row + march.slab - 1))
    put(ints, FIRST + hit, np.int32(first))
    put(ints, LAST + hit, np.int32(max(last, np.float32(-1.0))))
    # A block spans at most 6 standard deviations: its end is still a normal float where its start is at the support's.
    steepest = reduce_max(where(inside, bb, 0.0))
    rows = np.float32(6.0) * per_row / np.sqrt(max(steepest, np.float32(1e-12)))
    put(ints, BLOCK + hit, np.int32(max(min(rows, np.float32(MAX_BLOCK)), np.float32(1.0))))


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
    if last < first:
        return
    at = get(ints, RECORD + hit) * RECORD_SIZE
    density = get(scene.records, at + 12)
    red, green, blue = get(scene.records, at + 13), get(scene.records, at + 14), get(scene.records, at + 15)
    enter, leave = load(ws, slot + ENTER), load(ws, slot + LEAVE)
    bend = exp(load(ws, slot + BB) * (-march.pitch * march.pitch))
    for start in range(first, last + 1, block):
        profile, slope = start_block(ws, slot, start, block, march)
        profile = profile * density
        for j in range(start, min(start + block, last + 1)):
            f = where((enter <= np.float32(j)) & (leave >= np.float32(j)), profile, 0.0)
            to = ROWS + (j - row) * ROW_SIZE
            store(ws, to + SIGMA, load(ws, to + SIGMA) + f)
            store(ws, to + ER, load(ws, to + ER) + f * red)
            store(ws, to + EG, load(ws, to + EG) + f * green)
            store(ws, to + EB, load(ws, to + EB) + f * blue)
            profile = profile * slope
            slope = slope * bend


@njit(cache=True, nogil=True)
def fill_slab(ws: Pointer, ints: Pointer, scene: Scene, row: int, march: March, keep: bool) -> tuple[int, bool]:
    """Fill the slab's rows.

    Args:
        ws: the thread's workspace.
        ints: the thread's integers.
        scene: the Gaussians.
        row: the slab's first row.
        march: the settings.
        keep: whether each hit's projection goes into a slot of its own, for the backward pass.

    Returns:
        How many records were met, and whether the list of hits holds all of them.
    """
    total, node, found = 0, 0, 0
    slots = ROWS + march.slab * ROW_SIZE
    while node < scene.nodes:
        found, node = collect(ws, ints, scene, node)
        if found > 0 and total == 0:
            for i in range(march.slab * (ROW_SIZE // LANES)):
                store(ws, ROWS + i * LANES, splat(0.0))
        total += found
        for hit in range(found):
            slot = slots + hit * HIT_SIZE if keep else slots
            project(ws, ints, scene, hit, slot, row, march)
            _accumulate(ws, ints, scene, hit, slot, row, march)
    return total, total == found
