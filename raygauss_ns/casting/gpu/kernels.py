"""The forward and the backward kernel of the caster on a GPU: one warp marches 32 rays, in slabs of K samples.

    skip empty space -> add the listed Gaussians that the slab meets to sigma and E = sum f c -> composite the slab

No Gaussian is dropped: each is added as it is found. The backward kernel recomputes a slab's sigma and g . E, turns
them into P and Q, and visits the same Gaussians again. With R the contribution of the samples behind (a suffix sum
along the ray),

    dL/df_l = w = P (g . c_l) + Q,   P = T dt phi,   Q = T dt^2 phi' (g . E) - dt (g . R) + the depth's part

Along a ray x - mu is p + d tau with tau = t - t*, so that four sums over a lane's samples (of w f, w f tau, w f tau^2
and P f) give the lane's part of all 13 moments (see `casting.moments`). 16 values in 32 lanes are summed in 16
exchanges, which halve the number of values in each round. At the end each lane holds one sum, and a single atomic
instruction adds the 64 bytes of a Gaussian's row.

A slab's Gaussians come from the packet's list (`lists`). The collecting kernel writes it, once for both passes. The
other two exist twice: one for packets whose list holds all that their rays meet, and, with WINDOWED, one for the
others, which traverses the hierarchy again for windows in depth. That takes registers that the first can do without.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.gpu.geometry import BROKEN
from raygauss_ns.casting.gpu.lists import collect, ends_of, next_entry, open_list, packet_list
from raygauss_ns.casting.gpu.packets import (
    load_vector,
    open_packet,
    open_slab,
    packet_rays,
    phi,
    phi_slope,
    transmittances,
)
from raygauss_ns.casting.gpu.slabs import collect_colors, collect_gradients, differentiate

# Numbers that change from call to call: specialising on their values would cause recompilations.
CHANGING = ["number", "width", "first1", "first2", "first3", "roots", "capacity"]


@triton.jit
def _open_window(
    scene: ty.Fields,
    listed: ty.Fields,
    origin: ty.Vector,
    direction: ty.Vector,
    window: ty.Fields,
    begin: ty.Lanes,
    end: ty.Lanes,
    dt: ty.Scalar,
    K: tl.constexpr,
    TILED: tl.constexpr,
) -> tuple[ty.Scalar, ty.Scalar, ty.Scalar, ty.Scalar]:
    """Write the list of a window that begins at a row, as long as the list can hold.

    Args:
        scene: as in `lists`.
        listed: as in `lists`.
        origin: of the packet's rays.
        direction: of the packet's rays.
        window: the window's first row, and the rows to try.
        begin: [RAYS] first row of each ray.
        end: [RAYS] one past its last.
        dt: step.
        K: rows of a slab.
        TILED: whether the rays are an image's.

    Returns:
        Entries; not 0 if the list is full, even for one slab; one past the window's last row; rows to try next time.
    """
    row, length = window
    rows = tl.max(end, 0)
    length = tl.minimum(length, rows - row)
    stop, count, full = row, tl.zeros_like(row), tl.zeros_like(row)
    more = length > 0
    while more:
        stop = tl.minimum(row + length, rows)
        _, near, far = open_slab(row, begin, tl.minimum(end, stop), dt, 1073741824)
        count, full = collect(scene, listed, (origin, direction, near, far), full * 0, TILED)
        more = (full > 0) & (length > K)
        length = tl.where(more, tl.maximum(length // 2, K), length)
    return count, full, stop, tl.where(2 * count < listed[2], 2 * length, length)


@triton.jit
def _open_slab(
    row: ty.Scalar,
    origin: ty.Vector,
    direction: ty.Vector,
    begin: ty.Lanes,
    end: ty.Lanes,
    dt: ty.Scalar,
    K: tl.constexpr,
) -> ty.Fields:
    """A slab as `slabs` takes it."""
    some, near, far = open_slab(row, begin, end, dt, K)
    rays = (origin, direction, near, far)
    first, last = ends_of(rays)
    return some, first, last, rays


@triton.jit
def _next_row(listed: ty.Fields, window: ty.Fields, row: ty.Scalar, limit: ty.Scalar, dt: ty.Scalar) -> ty.Scalar:
    """The first row, not before `row` and not beyond `limit`, at which any ray may meet a Gaussian of the window."""
    count, full = window
    near = row.to(tl.float32) * dt
    last = limit.to(tl.float32) * dt
    entered = next_entry(listed, count, near)
    # One row early: product and quotient are rounded.
    found = tl.where(entered < last, tl.floor(tl.minimum(entered, last) / dt).to(tl.int32) - 1, limit)
    # Nothing is known of a slab that has more Gaussians than the list holds.
    return tl.where(full > 0, row, tl.maximum(found, row))


@triton.jit(do_not_specialize=CHANGING)
def collect_kernel(
    origins: ty.Pointer,
    directions: ty.Pointer,
    nears: ty.Pointer,
    counts: ty.Pointer,
    order: ty.Pointer,
    number: ty.Scalar,
    width: ty.Scalar,
    records: ty.Pointer,
    squared_cutoffs: ty.Pointer,
    bounds: ty.Pointer,
    blocks: ty.Pointer,
    first1: ty.Scalar,
    first2: ty.Scalar,
    first3: ty.Scalar,
    roots: ty.Scalar,
    intervals: ty.Pointer,
    entries: ty.Pointer,
    lengths: ty.Pointer,
    capacity: ty.Scalar,
    step: ty.Scalar,
    step_rest: ty.Scalar,
    offset: ty.Scalar,
    TILED: tl.constexpr,
) -> None:
    """Write the list of a packet of rays; its length becomes -1 if it cannot hold all that the rays meet."""
    scene = (records, squared_cutoffs, blocks, (first1, first2, first3, roots))
    listed = open_list(intervals, entries, capacity)
    ray, valid = packet_rays(order, number, width, TILED)
    origin, direction, _, begin, end = open_packet(
        ray, valid, (origins, directions, nears, counts), bounds, (step, step_rest, offset), TILED
    )
    _, near, far = open_slab(tl.zeros_like(number), begin, end, step, 1073741824)
    count, full = collect(scene, listed, (origin, direction, near, far), tl.zeros_like(number), TILED)
    tl.store(lengths + tl.program_id(0), tl.where(full > 0, -1, count))


@triton.jit(do_not_specialize=CHANGING)
def forward_kernel(
    origins: ty.Pointer,
    directions: ty.Pointer,
    nears: ty.Pointer,
    counts: ty.Pointer,
    order: ty.Pointer,
    number: ty.Scalar,
    width: ty.Scalar,
    records: ty.Pointer,
    squared_cutoffs: ty.Pointer,
    bounds: ty.Pointer,
    blocks: ty.Pointer,
    first1: ty.Scalar,
    first2: ty.Scalar,
    first3: ty.Scalar,
    roots: ty.Scalar,
    intervals: ty.Pointer,
    entries: ty.Pointer,
    lengths: ty.Pointer,
    capacity: ty.Scalar,
    step: ty.Scalar,
    step_rest: ty.Scalar,
    offset: ty.Scalar,
    eps: ty.Scalar,
    threshold: ty.Scalar,
    out: ty.Pointer,
    K: tl.constexpr,
    TILED: tl.constexpr,
    WINDOWED: tl.constexpr,
) -> None:
    """Cast a packet of rays: out [R, 5] becomes red, green, blue, transmittance and depth."""
    scene = (records, squared_cutoffs, blocks, (first1, first2, first3, roots))
    listed = open_list(intervals, entries, capacity)
    ray, valid = packet_rays(order, number, width, TILED)
    count, mine = packet_list(lengths, WINDOWED)
    valid = valid & mine
    origin, direction, start, begin, end = open_packet(
        ray, valid, (origins, directions, nears, counts), bounds, (step, step_rest, offset), TILED
    )
    transmittance = tl.full([32], 1.0, tl.float32)
    red = tl.zeros([32], tl.float32)
    green = tl.zeros([32], tl.float32)
    blue = tl.zeros([32], tl.float32)
    depth = tl.zeros([32], tl.float32)
    rows = tl.max(end, 0)
    row = tl.zeros_like(rows)
    # The list does not hold the whole ray: a half is tried.
    full, stop, length = row, row, rows // 2 + K
    while row < rows:
        if WINDOWED:  # noqa: SIM102 - known to the compiler, unlike the next condition
            if (row + K > stop) & (stop < rows):
                count, full, stop, length = _open_window(
                    scene, listed, origin, direction, (row, length), begin, end, step, K, TILED
                )
        slab = _open_slab(row, origin, direction, begin, end, step, K)
        sigma, er, eg, eb, candidates, met = collect_colors(
            scene, listed, (count, full), row, origin, slab, eps, step, K, TILED, WINDOWED
        )
        if met > 0:
            x, before, live = transmittances(sigma, row, begin, end, transmittance, threshold, step, K)
            weight = tl.where(live, before * phi(x), 0.0)
            red += step * tl.sum(weight * er, 0)
            green += step * tl.sum(weight * eg, 0)
            blue += step * tl.sum(weight * eb, 0)
            t = start[None, :] + (row + tl.arange(0, K)).to(tl.float32)[:, None] * step
            depth += tl.sum(weight * x * t, 0)
            transmittance *= tl.exp(-tl.sum(tl.where(live, x, 0.0), 0))
            end = tl.where(transmittance > threshold, end, 0)
            rows = tl.max(end, 0)
        row += K
        if candidates == 0:
            row = _next_row(listed, (count, full), row, tl.minimum(stop, rows) if WINDOWED else rows, step)
    store_outputs(
        out, ray, valid, tl.load(counts + ray, mask=valid, other=0) == BROKEN, (red, green, blue), transmittance, depth
    )


@triton.jit
def store_outputs(
    out: ty.Pointer,
    ray: ty.Lanes,
    valid: ty.Lanes,
    broken: ty.Lanes,
    color: ty.Vector,
    transmittance: ty.Lanes,
    depth: ty.Lanes,
) -> None:
    """Write the outputs of the packet's rays; NaN for those whose direction is not of unit length."""
    spoilt = tl.where(broken, float("nan"), 0.0)
    to = out + ray * 5
    tl.store(to, color[0] + spoilt, mask=valid)
    tl.store(to + 1, color[1] + spoilt, mask=valid)
    tl.store(to + 2, color[2] + spoilt, mask=valid)
    tl.store(to + 3, transmittance + spoilt, mask=valid)
    tl.store(to + 4, depth + spoilt, mask=valid)


@triton.jit
def load_gradients(
    out: ty.Pointer, grad_out: ty.Pointer, ray: ty.Lanes, valid: ty.Lanes
) -> tuple[ty.Vector, ty.Lanes, ty.Lanes]:
    """Gradients g of colour and depth, and the start of the suffix sum: g . outputs, the transmittance included.

    All are 0 for a ray that became NaN: another lane's Gaussians must not.
    """
    through = tl.load(out + ray * 5 + 3, mask=valid, other=0.0)
    valid = valid & (through == through)
    g = load_vector(grad_out + ray * 5, valid, 0.0)
    g_through = tl.load(grad_out + ray * 5 + 3, mask=valid, other=0.0)
    g_depth = tl.load(grad_out + ray * 5 + 4, mask=valid, other=0.0)
    color = load_vector(out + ray * 5, valid, 0.0)
    remaining = g[0] * color[0] + g[1] * color[1] + g[2] * color[2]
    remaining += tl.where(valid, g_through * through, 0.0)
    remaining += g_depth * tl.load(out + ray * 5 + 4, mask=valid, other=0.0)
    return g, g_depth, remaining


@triton.jit(do_not_specialize=CHANGING)
def backward_kernel(
    origins: ty.Pointer,
    directions: ty.Pointer,
    nears: ty.Pointer,
    counts: ty.Pointer,
    order: ty.Pointer,
    number: ty.Scalar,
    width: ty.Scalar,
    records: ty.Pointer,
    squared_cutoffs: ty.Pointer,
    bounds: ty.Pointer,
    blocks: ty.Pointer,
    first1: ty.Scalar,
    first2: ty.Scalar,
    first3: ty.Scalar,
    roots: ty.Scalar,
    intervals: ty.Pointer,
    entries: ty.Pointer,
    lengths: ty.Pointer,
    capacity: ty.Scalar,
    step: ty.Scalar,
    step_rest: ty.Scalar,
    offset: ty.Scalar,
    eps: ty.Scalar,
    threshold: ty.Scalar,
    out: ty.Pointer,
    grad_out: ty.Pointer,
    moments: ty.Pointer,
    K: tl.constexpr,
    TILED: tl.constexpr,
    WINDOWED: tl.constexpr,
) -> None:
    """Differentiate a packet of rays: add its contribution to the records' moments [N, 16]."""
    scene = (records, squared_cutoffs, blocks, (first1, first2, first3, roots))
    listed = open_list(intervals, entries, capacity)
    ray, valid = packet_rays(order, number, width, TILED)
    count, mine = packet_list(lengths, WINDOWED)
    valid = valid & mine
    origin, direction, start, begin, end = open_packet(
        ray, valid, (origins, directions, nears, counts), bounds, (step, step_rest, offset), TILED
    )
    g, g_depth, remaining = load_gradients(out, grad_out, ray, valid)
    transmittance = tl.full([32], 1.0, tl.float32)
    rows = tl.max(end, 0)
    row = tl.zeros_like(rows)
    full, stop, length = row, row, rows // 2 + K
    while row < rows:
        if WINDOWED:  # noqa: SIM102 - known to the compiler, unlike the next condition
            if (row + K > stop) & (stop < rows):
                count, full, stop, length = _open_window(
                    scene, listed, origin, direction, (row, length), begin, end, step, K, TILED
                )
        slab = _open_slab(row, origin, direction, begin, end, step, K)
        window = (count, full)
        sigma, g_e, candidates, met = collect_gradients(
            scene, listed, window, row, origin, slab, g, eps, step, K, TILED, WINDOWED
        )
        if met > 0:
            x, before, live = transmittances(sigma, row, begin, end, transmittance, threshold, step, K)
            before = tl.where(live, before, 0.0)
            g_t = g_depth[None, :] * (start[None, :] + (row + tl.arange(0, K)).to(tl.float32)[:, None] * step)
            weight = before * phi(x)
            p = weight * step
            contribution = p * g_e + weight * x * g_t
            behind = remaining[None, :] - tl.cumsum(contribution, 0)
            q = before * phi_slope(x) * (step * step) * g_e + (before * tl.exp(-x) * g_t - behind) * step
            q = tl.where(live, q, 0.0)
            differentiate(scene, listed, window, row, origin, slab, g, p, q, moments, eps, step, K, TILED, WINDOWED)
            remaining -= tl.sum(contribution, 0)
            transmittance *= tl.exp(-tl.sum(tl.where(live, x, 0.0), 0))
            end = tl.where(transmittance > threshold, end, 0)
            rows = tl.max(end, 0)
        row += K
        if candidates == 0:
            row = _next_row(listed, window, row, tl.minimum(stop, rows) if WINDOWED else rows, step)
