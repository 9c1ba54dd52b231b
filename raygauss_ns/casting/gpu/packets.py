"""Functions of both kernels: a packet of 32 rays, one per lane, its slabs, and the Gaussians along its rays.

One program is one warp. Tensors are [RAYS], one value per lane, or [K, RAYS] for a slab of K samples per ray. Rays are
the last dimension, so that a lane holds all samples of its ray in registers, sums over samples need no other lane, and
"does any ray ..." is a single warp reduction. Scalars are the same in all lanes.

Row j of a packet is sample j of every ray, at distance j dt from the packet's own origins. These lie where the rays
enter the box of all Gaussians: differences of large coordinates would lose digits in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ns_support.kernels import triton_types as ty

RAYS = 32
"""Rays of a packet: the lanes of a warp."""
TILE_WIDTH, TILE_HEIGHT = 8, 4
"""Pixels of a packet when the rays form an image."""


@triton.jit
def packet_rays(
    order: ty.Pointer, number: ty.Scalar, width: ty.Scalar, TILED: tl.constexpr
) -> tuple[ty.Lanes, ty.Lanes]:
    """The packet's rays, int64 [RAYS], and which lanes have one: a tile of the image, or a run of `order`."""
    lane = tl.arange(0, 32)
    packet = tl.program_id(0)
    if TILED:
        tiles = (width + 7) // 8
        y = packet // tiles * 4 + lane // 8
        x = packet % tiles * 8 + lane % 8
        valid = (y < number // width) & (x < width)
        ray = y.to(tl.int64) * width + x
    else:
        slot = packet.to(tl.int64) * 32 + lane
        valid = slot < number
        ray = tl.load(order + slot, mask=valid, other=0)
    return tl.where(valid, ray, 0), valid


@triton.jit
def load_vector(at: ty.Pointer, valid: ty.Lanes, z: ty.Scalar) -> ty.Vector:
    """Three consecutive floats per lane; (0, 0, z) for a lane without a ray."""
    return (
        tl.load(at, mask=valid, other=0.0),
        tl.load(at + 1, mask=valid, other=0.0),
        tl.load(at + 2, mask=valid, other=z),
    )


@triton.jit
def clip(
    o: ty.Lanes, d: ty.Lanes, lower: ty.Scalar, upper: ty.Scalar, enter: ty.Lanes, leave: ty.Lanes
) -> tuple[ty.Lanes, ty.Lanes]:
    """Narrow the distances between which a ray is between two planes."""
    # A ray parallel to the planes gets an inverse so large that it is between them everywhere or nowhere, without
    # 0 * inf.
    inverse = 1.0 / tl.where(tl.abs(d) < 1e-20, 1e-20, d)
    a = (lower - o) * inverse
    b = (upper - o) * inverse
    return tl.maximum(enter, tl.minimum(a, b)), tl.minimum(leave, tl.maximum(a, b))


@triton.jit
def bounds_interval(bounds: ty.Pointer, origin: ty.Vector, direction: ty.Vector) -> tuple[ty.Lanes, ty.Lanes]:
    """Distances [RAYS] at which the rays enter and leave the box of all Gaussians."""
    enter, leave = clip(origin[0], direction[0], tl.load(bounds), tl.load(bounds + 3), -float("inf"), float("inf"))
    enter, leave = clip(origin[1], direction[1], tl.load(bounds + 1), tl.load(bounds + 4), enter, leave)
    return clip(origin[2], direction[2], tl.load(bounds + 2), tl.load(bounds + 5), enter, leave)


@triton.jit
def _row_near(t: ty.Lanes, near: ty.Lanes, dt: ty.Scalar, direction: ty.Scalar) -> ty.Lanes:
    """The sample at a distance, rounded down (-1) or up (1) by more than float32's rounding error; >= 0."""
    # Bounded, because the box of an empty scene is almost infinitely far away.
    row = (tl.minimum(tl.maximum(t, -1e28), 1e28) - near) / dt
    row = row + direction * (2.0 + 1e-6 * (tl.abs(row) + tl.abs(near) / dt))
    return tl.minimum(tl.maximum(tl.floor(row), 0.0), 1073741824.0).to(tl.int32)


@triton.jit
def open_packet(
    ray: ty.Lanes, valid: ty.Lanes, rays: ty.Fields, bounds: ty.Pointer, march: ty.Fields, TILED: tl.constexpr
) -> tuple[ty.Vector, ty.Vector, ty.Lanes, ty.Lanes, ty.Lanes]:
    """Load the packet's rays.

    Args:
        ray: [RAYS] which rays.
        valid: [RAYS] which lanes have one.
        rays: the arrays of origins, directions, nears and counts.
        bounds: lower and upper corner of the box of all Gaussians.
        march: step, its rounding error (the step is a float32), sample offset.
        TILED: whether row 0 is the same sample index for all rays, or each ray's own first sample.

    Returns:
        Origins moved to row 0, directions, distance of row 0 from the ray's own origin, first and one past the last row
        of each ray.
    """
    origins, directions, nears, counts = rays
    step, step_rest, offset = march
    origin = load_vector(origins + ray * 3, valid, 0.0)
    direction = load_vector(directions + ray * 3, valid, 1.0)
    count = tl.load(counts + ray, mask=valid, other=0)
    near = tl.load(nears + ray, mask=valid, other=0.0)
    near = tl.where(count > 0, near, 0.0)  # an empty ray may begin at infinity
    enter, leave = bounds_interval(bounds, origin, direction)
    begin = _row_near(enter, near, step, -1.0)
    end = tl.minimum(_row_near(leave, near, step, 1.0) + 1, count)
    some = (begin < end) & (enter <= leave)
    first = tl.where(some, begin, 1073741824)
    if TILED:
        first = tl.min(first, 0) + tl.zeros([32], tl.int32)
    first = tl.where(first < 1073741824, first, 0)
    # In float64: the rounding of a far origin would shift all samples.
    start = near.to(tl.float64) + (first.to(tl.float64) + offset) * (tl.zeros([32], tl.float64) + step + step_rest)
    ox = (origin[0].to(tl.float64) + start * direction[0].to(tl.float64)).to(tl.float32)
    oy = (origin[1].to(tl.float64) + start * direction[1].to(tl.float64)).to(tl.float32)
    oz = (origin[2].to(tl.float64) + start * direction[2].to(tl.float64)).to(tl.float32)
    begin = tl.where(some, begin - first, 0)
    end = tl.where(some, end - first, 0)
    return (ox, oy, oz), direction, start.to(tl.float32), begin, end


@triton.jit
def open_slab(
    row: ty.Scalar, begin: ty.Lanes, end: ty.Lanes, dt: ty.Scalar, K: tl.constexpr
) -> tuple[ty.Lanes, ty.Lanes, ty.Lanes]:
    """Which rays have a sample in the slab [row, row + K), and the distances [RAYS] of the first and the last one."""
    first = tl.maximum(begin, row)
    last = tl.minimum(end, row + K) - 1
    return first <= last, first.to(tl.float32) * dt, last.to(tl.float32) * dt


@triton.jit
def _whiten(at: ty.Pointer, offset: ty.Vector, direction: ty.Vector) -> tuple[ty.Lanes, ty.Lanes]:
    """A row of A times the offset, and times the direction."""
    a0, a1, a2 = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    u = a0 * offset[0] + a1 * offset[1] + a2 * offset[2]
    return u, a0 * direction[0] + a1 * direction[1] + a2 * direction[2]


@triton.jit
def project(at: ty.Pointer, origin: ty.Vector, direction: ty.Vector) -> ty.Vector:
    """Project a record's Gaussian on each ray: |A (x - mu)|^2 = h2 + bb (t - t*)^2.

    Computed from the point of closest approach: the discriminant of the quadratic loses all digits for a small Gaussian
    far away.

    Returns:
        t*, bb and h2.
    """
    offset = (origin[0] - tl.load(at), origin[1] - tl.load(at + 1), origin[2] - tl.load(at + 2))
    u0, b0 = _whiten(at + 3, offset, direction)
    u1, b1 = _whiten(at + 6, offset, direction)
    u2, b2 = _whiten(at + 9, offset, direction)
    bb = b0 * b0 + b1 * b1 + b2 * b2
    closest = -(u0 * b0 + u1 * b1 + u2 * b2) / tl.maximum(bb, 1e-30)
    u0 += closest * b0
    u1 += closest * b1
    u2 += closest * b2
    return closest, bb, u0 * u0 + u1 * u1 + u2 * u2


@triton.jit
def inside_slab(
    passage: ty.Vector, squared_cutoff: ty.Scalar, row: ty.Scalar, some: ty.Lanes, dt: ty.Scalar, K: tl.constexpr
) -> ty.Scalar:
    """Whether any ray's part of the slab is inside the support |A (x - mu)|^2 < k^2, the squared cutoff radius."""
    closest, bb, h2 = passage
    near = row.to(tl.float32) * dt
    far = (row + (K - 1)).to(tl.float32) * dt
    tau = tl.minimum(tl.maximum(closest, near), far) - closest
    inside = some & (h2 + bb * tau * tau < squared_cutoff)
    return tl.max(inside.to(tl.int32), 0) > 0


@triton.jit
def densities_along(
    density: ty.Scalar, passage: ty.Vector, row: ty.Scalar, threshold: ty.Scalar, dt: ty.Scalar, K: tl.constexpr
) -> tuple[ty.Slab, ty.Slab]:
    """A Gaussian's density f at the slab's samples (0 unless it exceeds eps), and t - t*: [K, RAYS] each."""
    closest, bb, h2 = passage
    tau = (row + tl.arange(0, K)).to(tl.float32)[:, None] * dt - closest[None, :]
    # exp(-q / 2) = 2^(-q log2(e) / 2)
    exponent = (-0.7213475204444817 * h2)[None, :] + (-0.7213475204444817 * bb)[None, :] * tau * tau
    f = density * tl.exp2(exponent)
    return tl.where(f > threshold, f, 0.0), tau


@triton.jit
def transmittances(
    sigma: ty.Slab,
    row: ty.Scalar,
    begin: ty.Lanes,
    end: ty.Lanes,
    transmittance: ty.Lanes,
    threshold: ty.Scalar,
    dt: ty.Scalar,
    K: tl.constexpr,
) -> tuple[ty.Slab, ty.Slab, ty.Slab]:
    """Optical depths x of the slab's samples, the transmittance before each, which of them contribute: [K, RAYS] each.

    Args:
        sigma: [K, RAYS].
        row: the slab's first row.
        begin: [RAYS] first row of each ray.
        end: [RAYS] one past its last.
        transmittance: [RAYS] before the slab.
        threshold: a sample contributes only while the transmittance before it exceeds this.
        dt: step.
        K: rows of the slab.
    """
    rows = (row + tl.arange(0, K))[:, None]
    exists = (rows >= begin[None, :]) & (rows < end[None, :])
    x = tl.where(exists, sigma * dt, 0.0)
    # e^-30 has no visible effect; without the cap, a single huge depth would cost the cumulative sums their digits.
    capped = tl.minimum(x, 30.0)
    before = transmittance[None, :] * tl.exp(capped - tl.cumsum(capped, 0))
    return x, before, exists & (before > threshold)


@triton.jit
def phi(x: ty.Slab) -> ty.Slab:
    """(1 - e^-x) / x; the direct form loses digits below 0.25."""
    series = 1.0 + x * (-0.5 + x * (1 / 6 + x * (-1 / 24 + x * (1 / 120 + x * (-1 / 720 + x * (1 / 5040))))))
    return tl.where(x < 0.25, series, (1.0 - tl.exp(-x)) / tl.maximum(x, 0.25))


@triton.jit
def phi_slope(x: ty.Slab) -> ty.Slab:
    """D phi / dx = (e^-x (1 + x) - 1) / x^2; the direct form loses digits below 0.5."""
    series = 1 / 30 + x * (-1 / 144 + x * (1 / 840 + x * (-1 / 5760 + x * (1 / 45360))))
    series = -0.5 + x * (1 / 3 + x * (-0.125 + x * series))
    safe = tl.maximum(x, 0.5)
    return tl.where(x < 0.5, series, (tl.exp(-safe) * (1.0 + safe) - 1.0) / (safe * safe))
