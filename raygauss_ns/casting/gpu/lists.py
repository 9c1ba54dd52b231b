"""The list of a packet: the Gaussians that its rays meet, with the distances between which they do.

One traversal of the block hierarchy writes it (`collect`). The march then takes the Gaussians of a slab from the list,
32 entries at a time: an entry counts where its interval overlaps the slab. The sum over a slab's Gaussians has no
order, so that nothing is sorted.

A block's children are tested against the packet's cone, one child in each lane. The cone contains the packet's rays:
with o and d the rays' origins and directions, at distance t the coordinates of all rays lie between
min(o) + t min(d) and max(o) + t max(d). If the rays are not an image, the cone may contain much that no ray meets;
children that it meets are then tested against each ray as well.

A list holds `capacity` entries. If the whole ray needs more, the march opens windows in depth, each with a traversal of
its own. If even one slab needs more, its Gaussians come in batches (`resume`). Nothing is dropped.

Distances are measured from the packet's own origins. `scene` is, in this order: records, squared cutoff radii, blocks,
(first block of the second, third and fourth level, blocks of the fourth). `listed` is, in this order: the entries'
intervals (`capacity` distances at which the first ray enters, then as many at which the last one leaves), the entries'
records, capacity.

An entry is written by the lane that will read it, so that no lane depends on what another has written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.gpu.packets import clip, project


@triton.jit
def nearest(t: ty.Lanes) -> ty.Scalar:
    """The least of distances >= 0, compared as integers (their bits have the same order), which is one instruction."""
    return tl.min(t.to(tl.int32, bitcast=True), 0).to(tl.float32, bitcast=True)


@triton.jit
def farthest(t: ty.Lanes) -> ty.Scalar:
    """The greatest of distances >= 0; a negative number, of any size, stands for none."""
    return tl.max(t.to(tl.int32, bitcast=True), 0).to(tl.float32, bitcast=True)


@triton.jit
def _in_order(bits: ty.Lanes) -> ty.Lanes:
    """From the bits of numbers of any sign to integers in the same order, and back."""
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _least(x: ty.Lanes) -> ty.Scalar:
    return _in_order(tl.min(_in_order(x.to(tl.int32, bitcast=True)), 0)).to(tl.float32, bitcast=True)


@triton.jit
def _greatest(x: ty.Lanes) -> ty.Scalar:
    return _in_order(tl.max(_in_order(x.to(tl.int32, bitcast=True)), 0)).to(tl.float32, bitcast=True)


@triton.jit
def next_lane(met: ty.Lanes, lane: ty.Scalar) -> ty.Scalar:
    """The first lane after `lane` in which `met` is true; 32 if there is none."""
    lanes = tl.arange(0, 32)
    return tl.min(tl.where(met & (lanes > lane), lanes, 32), 0)


@triton.jit
def open_list(
    intervals: ty.Pointer, entries: ty.Pointer, capacity: ty.Scalar
) -> tuple[ty.Pointer, ty.Pointer, ty.Scalar]:
    """The packet's part of the arrays of all lists."""
    packet = tl.program_id(0).to(tl.int64)
    return intervals + packet * 2 * capacity, entries + packet * capacity, capacity


@triton.jit
def packet_list(lengths: ty.Pointer, WINDOWED: tl.constexpr) -> tuple[ty.Scalar, ty.Scalar]:
    """The number of entries in the packet's list, and whether this kernel has to cast the packet."""
    length = tl.load(lengths + tl.program_id(0))
    if WINDOWED:
        mine = length < 0
    else:
        mine = length >= 0
    return tl.maximum(length, 0), mine


@triton.jit
def _inverse(d: ty.Scalar) -> ty.Scalar:
    return 1.0 / tl.where(tl.abs(d) < 1e-20, 1e-20, d)


@triton.jit
def _cone(origin: ty.Vector, direction: ty.Vector, some: ty.Lanes) -> tuple[ty.Fields, ty.Fields, ty.Fields, ty.Fields]:
    """Least and greatest origin of the rays that count, and the inverses of their least and greatest direction."""
    none = float("inf")
    low = (
        _least(tl.where(some, origin[0], none)),
        _least(tl.where(some, origin[1], none)),
        _least(tl.where(some, origin[2], none)),
    )
    high = (
        _greatest(tl.where(some, origin[0], -none)),
        _greatest(tl.where(some, origin[1], -none)),
        _greatest(tl.where(some, origin[2], -none)),
    )
    slowest = (
        _inverse(_least(tl.where(some, direction[0], none))),
        _inverse(_least(tl.where(some, direction[1], none))),
        _inverse(_least(tl.where(some, direction[2], none))),
    )
    fastest = (
        _inverse(_greatest(tl.where(some, direction[0], -none))),
        _inverse(_greatest(tl.where(some, direction[1], -none))),
        _inverse(_greatest(tl.where(some, direction[2], -none))),
    )
    return low, high, slowest, fastest


@triton.jit
def _cone_meets(at: ty.Pointer, cone: ty.Fields, near: ty.Scalar, far: ty.Scalar) -> ty.Lanes:
    """Which of a block's 32 boxes the cone meets between two distances: bool [32]; `at` is the block."""
    low, high, slowest, fastest = cone
    enter = tl.zeros([32], tl.float32) + near
    leave = tl.zeros([32], tl.float32) + far
    at += tl.arange(0, 32)
    for i in tl.static_range(3):
        # The greatest coordinate is not below the lower corner, the least not above the upper one.
        bound = (tl.load(at + 32 * i) - high[i]) * fastest[i]
        enter = tl.where(fastest[i] > 0, tl.maximum(enter, bound), enter)
        leave = tl.where(fastest[i] > 0, leave, tl.minimum(leave, bound))
        bound = (tl.load(at + 32 * (3 + i)) - low[i]) * slowest[i]
        enter = tl.where(slowest[i] > 0, enter, tl.maximum(enter, bound))
        leave = tl.where(slowest[i] > 0, tl.minimum(leave, bound), leave)
    return enter <= leave * (1.0 + 1e-6)  # by more than the rounding of the bounds


@triton.jit
def _some_ray_meets(at: ty.Pointer, rays: ty.Fields) -> ty.Scalar:
    """Whether any ray meets a child's box; `at` is the box's first coordinate."""
    origin, direction, near, far = rays
    enter, leave = clip(origin[0], direction[0], tl.load(at), tl.load(at + 96), near, far)
    enter, leave = clip(origin[1], direction[1], tl.load(at + 32), tl.load(at + 128), enter, leave)
    enter, leave = clip(origin[2], direction[2], tl.load(at + 64), tl.load(at + 160), enter, leave)
    return tl.max((enter <= leave * (1.0 + 1e-6)).to(tl.int32), 0) > 0


@triton.jit
def _children(
    blocks: ty.Pointer,
    block: ty.Scalar,
    cone: ty.Fields,
    cone_ends: ty.Fields,
    rays: ty.Fields,
    TILED: tl.constexpr,
    INNER: tl.constexpr,
) -> ty.Lanes:
    """Which of a block's 32 children the packet may meet: bool [32]."""
    at = blocks + block.to(tl.int64) * 192
    met = _cone_meets(at, cone, cone_ends[0], cone_ends[1])
    if INNER and not TILED:
        lanes = tl.arange(0, 32)
        child = next_lane(met, tl.zeros_like(block) - 1)
        while child < 32:
            met = met & ((lanes != child) | _some_ray_meets(at + child, rays))
            child = next_lane(met, child)
    return met


@triton.jit
def _interval(scene: ty.Fields, record: ty.Scalar, rays: ty.Fields) -> tuple[ty.Scalar, ty.Scalar]:
    """The distances at which the first ray enters a Gaussian's support and the last one leaves it, at least 0.

    The second is negative if no ray meets the support between the ray's own ends. Both are widened by more than
    float32's rounding error.
    """
    origin, direction, near, far = rays
    closest, bb, h2 = project(scene[0] + record.to(tl.int64) * 16, origin, direction)
    squared_cutoff = tl.load(scene[1] + record)
    room = squared_cutoff + (1e-5 * squared_cutoff + 1e-6) - h2
    half = tl.sqrt(tl.maximum(room, 0.0) / tl.maximum(bb, 1e-30))
    half += 1e-5 * half + 2e-6 * tl.abs(closest)
    enter = tl.maximum(closest - half, near)
    leave = tl.minimum(closest + half, far)
    met = (room > 0) & (enter <= leave)
    first = nearest(tl.where(met, tl.maximum(enter, 0.0), float("inf")))
    return first, farthest(tl.where(met, tl.maximum(leave, 0.0), -1.0))


@triton.jit
def _write_entry(listed: ty.Fields, count: ty.Scalar, record: ty.Scalar, interval: ty.Fields) -> ty.Scalar:
    """Append a record to a list of `count` entries if its interval is one; the number of entries written, 0 or 1."""
    intervals, entries, capacity = listed
    first, last = interval
    met = (last >= 0).to(tl.int32)
    lanes = tl.arange(0, 32)
    slot = count & 31
    at = count - slot + lanes
    mine = (lanes == slot) & (met > 0)
    tl.store(intervals + at, tl.zeros([32], tl.float32) + first, mask=mine)
    tl.store(intervals + capacity + at, tl.zeros([32], tl.float32) + last, mask=mine)
    tl.store(entries + at, tl.zeros([32], tl.int32) + record, mask=mine)
    return met


@triton.jit
def ends_of(rays: ty.Fields) -> tuple[ty.Scalar, ty.Scalar]:
    """The least and the greatest distance at which any ray counts; infinite and -1 if none does."""
    _, _, near, far = rays
    some = near <= far
    return nearest(tl.where(some, near, float("inf"))), farthest(tl.where(some, far, -1.0))


@triton.jit
def collect(
    scene: ty.Fields, listed: ty.Fields, rays: ty.Fields, resume: ty.Scalar, TILED: tl.constexpr
) -> tuple[ty.Scalar, ty.Scalar]:
    """Write the list of the Gaussians that the rays meet between their ends, in the order of the records.

    Args:
        scene: as above.
        listed: as above.
        rays: the packet's own origins, directions, and the distances from there [RAYS] between which each ray counts; a
            ray whose second distance is less than its first does not.
        resume: the first record to consider.
        TILED: whether the rays are an image's, so that the cone is tight.

    Returns:
        The number of entries, and the record with which to go on if the list is full; 0 if it is complete.
    """
    blocks, levels = scene[2], scene[3]
    first1, first2, first3, roots = levels
    capacity = listed[2]
    origin, direction, near, far = rays
    lanes = tl.arange(0, 32)
    cone = _cone(origin, direction, near <= far)
    ends = ends_of(rays)
    nothing = tl.zeros_like(resume)
    count, following = nothing, nothing
    b3 = resume // 1048576
    while (b3 < roots) & (count < capacity):
        m3 = _children(blocks, first3 + b3, cone, ends, rays, TILED, True)
        m3 = m3 & ((b3 * 32 + lanes + 1) * 32768 > resume)
        c3 = next_lane(m3, nothing - 1)
        while (c3 < 32) & (count < capacity):
            b2 = b3 * 32 + c3
            m2 = _children(blocks, first2 + b2, cone, ends, rays, TILED, True)
            m2 = m2 & ((b2 * 32 + lanes + 1) * 1024 > resume)
            c2 = next_lane(m2, nothing - 1)
            while (c2 < 32) & (count < capacity):
                b1 = b2 * 32 + c2
                m1 = _children(blocks, first1 + b1, cone, ends, rays, TILED, True)
                m1 = m1 & ((b1 * 32 + lanes + 1) * 32 > resume)
                c1 = next_lane(m1, nothing - 1)
                while (c1 < 32) & (count < capacity):
                    b0 = b1 * 32 + c1
                    m0 = _children(blocks, b0, cone, ends, rays, TILED, False)
                    m0 = m0 & (b0 * 32 + lanes >= resume)
                    c0 = next_lane(m0, nothing - 1)
                    while (c0 < 32) & (count < capacity):
                        record = b0 * 32 + c0
                        count += _write_entry(listed, count, record, _interval(scene, record, rays))
                        following = record + 1
                        c0 = next_lane(m0, c0)
                    c1 = next_lane(m1, c1)
                c2 = next_lane(m2, c2)
            c3 = next_lane(m3, c3)
        b3 += 1
    return count, tl.where(count < capacity, 0, following)


@triton.jit
def overlapping(
    listed: ty.Fields, chunk: ty.Scalar, count: ty.Scalar, near: ty.Scalar, far: ty.Scalar
) -> tuple[ty.Lanes, ty.Lanes]:
    """Which of the 32 entries from `chunk` on overlap an interval, bool [32], and their records, int32 [32]."""
    intervals, entries, capacity = listed
    at = chunk + tl.arange(0, 32)
    enter = tl.load(intervals + at, mask=at < count, other=float("inf"))
    leave = tl.load(intervals + capacity + at, mask=at < count, other=-1.0)
    met = (enter <= far) & (leave >= near)
    return met, tl.load(entries + at, mask=met, other=0)


@triton.jit
def record_in(records: ty.Lanes, lane: ty.Scalar) -> ty.Scalar:
    """The record in a lane."""
    return tl.max(tl.where(tl.arange(0, 32) == lane, records, 0), 0)


@triton.jit
def next_entry(listed: ty.Fields, count: ty.Scalar, near: ty.Scalar) -> ty.Scalar:
    """The least distance, not before `near`, at which an entry is met; infinite if there is none."""
    intervals, _, capacity = listed
    reached = tl.full([32], float("inf"), tl.float32)
    chunk = tl.zeros_like(count)
    while chunk < count:
        at = chunk + tl.arange(0, 32)
        enter = tl.load(intervals + at, mask=at < count, other=float("inf"))
        leave = tl.load(intervals + capacity + at, mask=at < count, other=-1.0)
        reached = tl.minimum(reached, tl.where(leave >= near, enter, float("inf")))
        chunk += 32
    return tl.maximum(nearest(reached), near)
