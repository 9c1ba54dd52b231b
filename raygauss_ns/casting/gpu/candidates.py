"""The candidates of a slab: Gaussians found in the BVH, or in the list of a tile and a distance shell (LISTED).

Both are traversed from one place to the next, and a place may hold a Gaussian; the kernels decide what to do with it.

The places of the BVH are its nodes in depth-first order; each slab traverses it anew, without a stack, by skip
pointers. Node boxes are tested against each ray's own segment of the slab, not against a box around all segments: an
incoherent packet pays for what its rays meet, not for the space between them.

The places of the lists are entries, sorted by tile and by shell of distance from the camera; `tile_lists` builds them.
A slab uses the shells that contain its samples, mostly one. If it uses several, a Gaussian that is in more than one of
them counts once: in the slab's first shell, or in the Gaussian's own first one.

`scene` is, in this order: records, squared cutoff radii, boxes, links (skip pointer and record of each BVH node),
number of nodes, (starts, shells, number of shells). With LISTED `links` are the entries.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.gpu.packets import box_interval


@triton.jit
def _least(t: ty.Lanes) -> ty.Scalar:
    """The least of distances >= 0, compared as integers (their bits have the same order), which is one instruction."""
    return tl.min(t.to(tl.int32, bitcast=True), 0).to(tl.float32, bitcast=True)


@triton.jit
def _greatest(t: ty.Lanes) -> ty.Scalar:
    """The greatest of distances >= 0."""
    return tl.max(t.to(tl.int32, bitcast=True), 0).to(tl.float32, bitcast=True)


@triton.jit
def _shell(t: ty.Scalar, shells: ty.Pointer, number: ty.Scalar) -> ty.Scalar:
    """The shell that contains a distance from the camera, or else the nearest one."""
    at = tl.floor((t - tl.load(shells)) * tl.load(shells + 1))
    return tl.minimum(tl.maximum(at, 0.0), (number - 1).to(tl.float32)).to(tl.int32)


@triton.jit
def open_candidates(
    scene: ty.Fields,
    row: ty.Scalar,
    start: ty.Lanes,
    begin: ty.Lanes,
    end: ty.Lanes,
    dt: ty.Scalar,
    K: tl.constexpr,
    LISTED: tl.constexpr,
) -> tuple[ty.Scalar, ty.Scalar, ty.Scalar]:
    """The range of places to visit for a slab.

    Args:
        scene: as above.
        row: the slab's first row.
        start: [RAYS] distance of row 0 from the ray's own origin.
        begin: [RAYS] first row of each ray.
        end: [RAYS] one past its last.
        dt: step.
        K: rows of the slab.
        LISTED: whether there are lists.

    Returns:
        The first place, the first place that must be checked for duplicates (a Gaussian listed in several shells), and
        one past the last place.
    """
    place = tl.zeros_like(row)
    whole = place
    stop = place + scene[4]
    if LISTED:
        starts, shells, number = scene[5]
        first = tl.maximum(begin, row)
        last = tl.minimum(end, row + K) - 1
        near = tl.where(first <= last, start + first.to(tl.float32) * dt, float("inf"))
        far = tl.where(first <= last, start + last.to(tl.float32) * dt, 0.0)
        of_tile = starts + tl.program_id(0).to(tl.int64) * number
        at = of_tile + _shell(_least(near), shells, number)
        place = tl.load(at)
        whole = tl.load(at + 1)
        stop = tl.load(of_tile + _shell(_greatest(far), shells, number) + 1)
    return place, whole, stop


@triton.jit
def _meets(boxes: ty.Pointer, node: ty.Scalar, slab: ty.Fields) -> ty.Scalar:
    """Whether any ray's part of the slab meets a node's box."""
    lower, upper = slab[0], slab[1]
    at = boxes + node.to(tl.int64) * 6
    met = (tl.load(at) <= upper[0]) & (tl.load(at + 3) >= lower[0])
    met = met & (tl.load(at + 1) <= upper[1]) & (tl.load(at + 4) >= lower[1])
    met = met & (tl.load(at + 2) <= upper[2]) & (tl.load(at + 5) >= lower[2])
    return tl.max(met.to(tl.int32), 0) > 0


@triton.jit
def next_candidate(
    scene: ty.Fields, place: ty.Scalar, whole: ty.Scalar, slab: ty.Fields, LISTED: tl.constexpr
) -> tuple[ty.Scalar, ty.Scalar]:
    """Whether a place holds a Gaussian for this slab, and the next place."""
    at = scene[3] + place.to(tl.int64) * 2
    following = place + 1
    if LISTED:
        found = (place < whole) | (tl.load(at) % 2 == 1)
    else:
        skip = tl.load(at)
        met = _meets(scene[2], place, slab)
        found = met & (skip == following)
        following = tl.where(met, following, skip)
    return found, following


@triton.jit
def record_at(scene: ty.Fields, place: ty.Scalar, LISTED: tl.constexpr) -> ty.Scalar:
    """The record at a place that holds one."""
    at = scene[3] + place.to(tl.int64) * 2
    if LISTED:
        record = tl.load(at) // 2
    else:
        record = tl.load(at + 1) // 16
    return record


@triton.jit
def next_in_bvh(
    scene: ty.Fields,
    last: ty.Scalar,
    origin: ty.Vector,
    direction: ty.Vector,
    begin_t: ty.Lanes,
    end_t: ty.Lanes,
) -> ty.Scalar:
    """The least distance from row 0 at which any ray meets a leaf's box; `last` if none does before that."""
    boxes, links, nodes = scene[2], scene[3], scene[4]
    nearest = last
    node = tl.zeros_like(tl.program_id(0))
    while node < nodes:
        enter, leave = box_interval(boxes, node, origin, direction)
        enter = tl.maximum(enter, begin_t)
        met = enter <= tl.minimum(leave, tl.minimum(end_t, nearest))
        skip = tl.load(links + node.to(tl.int64) * 2)
        if tl.max(met.to(tl.int32), 0) > 0:
            if skip == node + 1:
                nearest = tl.min(tl.where(met, enter, nearest), 0)
            skip = node + 1
        node = skip
    return nearest


@triton.jit
def next_row(
    scene: ty.Fields,
    row: ty.Scalar,
    rows: ty.Scalar,
    rays: ty.Fields,
    begin: ty.Lanes,
    end: ty.Lanes,
    dt: ty.Scalar,
    LISTED: tl.constexpr,
) -> ty.Scalar:
    """The first row, not before `row`, at which any ray may meet a Gaussian; `rows` if there is none.

    Args:
        scene: as above.
        row: the first row to consider.
        rows: one past the last row of all rays.
        rays: origins at row 0, directions, and distances of row 0 from the rays' own origins.
        begin: [RAYS] first row of each ray.
        end: [RAYS] one past its last.
        dt: step.
        LISTED: whether there are lists.
    """
    origin, direction, start = rays
    begin_t = tl.maximum(begin, row).to(tl.float32) * dt
    # One row early: product and quotient are rounded.
    if LISTED:
        links = scene[3]
        starts, shells, number = scene[5]
        ahead = end > tl.maximum(begin, row)
        of_tile = starts + tl.program_id(0).to(tl.int64) * number
        shell = _shell(_least(tl.where(ahead, start + begin_t, float("inf"))), shells, number)
        entry = tl.load(of_tile + shell)
        listed = entry < tl.load(of_tile + number)
        next_shell = tl.load(links + entry.to(tl.int64) * 2 + 1, mask=listed, other=0)
        # The first shell includes everything nearer.
        enter = tl.load(shells) + next_shell.to(tl.float32) / tl.load(shells + 1) - start
        enter = tl.maximum(tl.where(next_shell > 0, enter, begin_t), begin_t)
        found = tl.min(tl.where(ahead & listed, tl.floor(enter / dt).to(tl.int32) - 1, rows), 0)
        found = tl.minimum(tl.maximum(found, row), rows)
    else:
        last = rows.to(tl.float32) * dt
        nearest = next_in_bvh(scene, last, origin, direction, begin_t, end.to(tl.float32) * dt)
        found = tl.floor(nearest / dt).to(tl.int32) - 1
        found = tl.where(nearest < last, tl.maximum(found, row), rows)
    return found
