"""The forward and the backward kernel of the caster on a GPU: one warp marches 32 rays, in slabs of K samples.

    skip empty space -> add the candidates that the slab meets to sigma and E = sum f c -> composite the slab

No Gaussian is dropped: each is added as it is found. The backward kernel recomputes a slab's sigma and g . E, turns
them into P and Q, and visits the same Gaussians again. With R the contribution of the samples behind (a suffix sum
along the ray),

    dL/df_l = w = P (g . c_l) + Q,   P = T dt phi,   Q = T dt^2 phi' (g . E) - dt (g . R) + the depth's part

Along a ray x - mu is p + d tau with tau = t - t*, so that four sums over a lane's samples (of w f, w f tau, w f tau^2
and P f) give the lane's part of all 13 moments (see `casting.moments`). 16 values in 32 lanes are summed in 16
exchanges, which halve the number of values in each round. At the end each lane holds one sum, and a single atomic
instruction adds the 64 bytes of a Gaussian's row.

Candidates come from the BVH, where a leaf holds one record and is a node whose skip pointer is the next node, or, with
LISTED, from tile lists. `candidates` contains all code in which the two differ.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.gpu.candidates import next_candidate, next_row, open_candidates, record_at
from raygauss_ns.casting.gpu.packets import (
    densities_along,
    inside_slab,
    load_vector,
    open_packet,
    open_slab,
    packet_rays,
    phi,
    phi_slope,
    project,
    transmittances,
)

# Numbers that change from call to call: specialising on their values would cause recompilations.
_CHANGING = ["number", "width", "nodes", "number_of_shells"]


@triton.jit
def _collect_colors(
    scene: ty.Fields,
    places: ty.Fields,
    row: ty.Scalar,
    origin: ty.Vector,
    direction: ty.Vector,
    slab: ty.Fields,
    eps: ty.Scalar,
    dt: ty.Scalar,
    K: tl.constexpr,
    LISTED: tl.constexpr,
) -> tuple[ty.Slab, ty.Slab, ty.Slab, ty.Slab, ty.Scalar, ty.Scalar]:
    """Sigma and E (3) of the slab, whether there was any candidate, and whether any was hit."""
    records, squared_cutoffs, some = scene[0], scene[1], slab[2]
    place, whole, stop = places
    sigma = tl.zeros([K, 32], tl.float32)
    red = tl.zeros([K, 32], tl.float32)
    green = tl.zeros([K, 32], tl.float32)
    blue = tl.zeros([K, 32], tl.float32)
    candidates = tl.zeros_like(row)
    met = candidates
    while place < stop:
        found, following = next_candidate(scene, place, whole, slab, LISTED)
        if found:
            record = record_at(scene, place, LISTED)
            candidates = 1
            at = records + record.to(tl.int64) * 16
            passage = project(at, origin, direction)
            if inside_slab(passage, tl.load(squared_cutoffs + record), row, some, dt, K):
                met = 1
                f, _ = densities_along(tl.load(at + 12), passage, row, eps, dt, K)
                sigma += f
                red += f * tl.load(at + 13)
                green += f * tl.load(at + 14)
                blue += f * tl.load(at + 15)
        place = following
    return sigma, red, green, blue, candidates, met


@triton.jit(do_not_specialize=_CHANGING)
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
    boxes: ty.Pointer,
    links: ty.Pointer,
    nodes: ty.Scalar,
    starts: ty.Pointer,
    shells: ty.Pointer,
    number_of_shells: ty.Scalar,
    step: ty.Scalar,
    step_rest: ty.Scalar,
    offset: ty.Scalar,
    eps: ty.Scalar,
    threshold: ty.Scalar,
    out: ty.Pointer,
    K: tl.constexpr,
    TILED: tl.constexpr,
    LISTED: tl.constexpr,
) -> None:
    """Cast a packet of rays: out [R, 5] becomes red, green, blue, transmittance and depth."""
    scene = (records, squared_cutoffs, boxes, links, nodes, (starts, shells, number_of_shells))
    ray, valid = packet_rays(order, number, width, TILED)
    origin, direction, start, begin, end = open_packet(
        ray, valid, (origins, directions, nears, counts), boxes, (step, step_rest, offset), TILED
    )
    transmittance = tl.full([32], 1.0, tl.float32)
    red = tl.zeros([32], tl.float32)
    green = tl.zeros([32], tl.float32)
    blue = tl.zeros([32], tl.float32)
    depth = tl.zeros([32], tl.float32)
    rows = tl.max(end, 0)
    rays = (origin, direction, start)
    row = next_row(scene, tl.zeros_like(rows), rows, rays, begin, end, step, LISTED)
    while row < rows:
        slab = open_slab(row, origin, direction, begin, end, step, K)
        places = open_candidates(scene, row, start, begin, end, step, K, LISTED)
        sigma, er, eg, eb, candidates, met = _collect_colors(
            scene, places, row, origin, direction, slab, eps, step, K, LISTED
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
            row = next_row(scene, row, rows, rays, begin, end, step, LISTED)
    to = out + ray * 5
    tl.store(to, red, mask=valid)
    tl.store(to + 1, green, mask=valid)
    tl.store(to + 2, blue, mask=valid)
    tl.store(to + 3, transmittance, mask=valid)
    tl.store(to + 4, depth, mask=valid)


@triton.jit
def _collect_gradients(
    scene: ty.Fields,
    places: ty.Fields,
    row: ty.Scalar,
    origin: ty.Vector,
    direction: ty.Vector,
    slab: ty.Fields,
    g: ty.Vector,
    eps: ty.Scalar,
    dt: ty.Scalar,
    K: tl.constexpr,
    LISTED: tl.constexpr,
) -> tuple[ty.Slab, ty.Slab, ty.Scalar, ty.Scalar]:
    """Sigma and g . E of the slab, whether there was any candidate, and whether any was hit."""
    records, squared_cutoffs, some = scene[0], scene[1], slab[2]
    place, whole, stop = places
    sigma = tl.zeros([K, 32], tl.float32)
    g_e = tl.zeros([K, 32], tl.float32)
    candidates = tl.zeros_like(row)
    met = candidates
    while place < stop:
        found, following = next_candidate(scene, place, whole, slab, LISTED)
        if found:
            record = record_at(scene, place, LISTED)
            candidates = 1
            at = records + record.to(tl.int64) * 16
            passage = project(at, origin, direction)
            if inside_slab(passage, tl.load(squared_cutoffs + record), row, some, dt, K):
                met = 1
                f, _ = densities_along(tl.load(at + 12), passage, row, eps, dt, K)
                sigma += f
                g_c = g[0] * tl.load(at + 13) + g[1] * tl.load(at + 14) + g[2] * tl.load(at + 15)
                g_e += f * g_c[None, :]
        place = following
    return sigma, g_e, candidates, met


@triton.jit
def _fold(a: ty.Lanes, b: ty.Lanes, distance: tl.constexpr) -> ty.Lanes:
    """Sum two values over pairs of lanes `distance` apart: a's sums go to the lower lanes, b's to the upper ones."""
    lane = tl.arange(0, 32)
    upper = (lane & distance) != 0
    return tl.where(upper, b, a) + tl.gather(tl.where(upper, a, b), lane ^ distance, 0)


@triton.jit
def _add_moments(
    to: ty.Pointer,
    passage: ty.Vector,
    at: ty.Pointer,
    origin: ty.Vector,
    direction: ty.Vector,
    g: ty.Vector,
    s: ty.Fields,
) -> None:
    """Add the packet's contribution to a record's 13 moments.

    Args:
        to: the record's row of 16 floats.
        passage: t*, bb and h2.
        at: the record.
        origin: of the packet's rays.
        direction: of the packet's rays.
        g: gradient of the colours.
        s: sums over each lane's samples of w f, w f tau, w f tau^2 and P f.
    """
    s0, s1, s2, sp = s
    dx, dy, dz = direction
    x = origin[0] - tl.load(at) + passage[0] * dx
    y = origin[1] - tl.load(at + 1) + passage[0] * dy
    z = origin[2] - tl.load(at + 2) + passage[0] * dz
    # Y1 = p s0 + d s1 and Y2 = p (p s0 + d s1)^T + d (p s1 + d s2)^T.
    x1, y1, z1 = x * s0 + dx * s1, y * s0 + dy * s1, z * s0 + dz * s1
    x2, y2, z2 = x * s1 + dx * s2, y * s1 + dy * s2, z * s1 + dz * s2
    # Lane l ends up with moment l mod 16: M0, Y1, Y2 (xx xy xz yy yz zz), colour.
    zero = tl.zeros([32], tl.float32)
    v0 = _fold(_fold(s0, x1, 1), _fold(y1, z1, 1), 2)
    v4 = _fold(_fold(x * x1 + dx * x2, x * y1 + dx * y2, 1), _fold(x * z1 + dx * z2, y * y1 + dy * y2, 1), 2)
    v8 = _fold(_fold(y * z1 + dy * z2, z * z1 + dz * z2, 1), _fold(g[0] * sp, g[1] * sp, 1), 2)
    v12 = _fold(_fold(g[2] * sp, zero, 1), zero, 2)
    total = _fold(_fold(v0, v4, 4), _fold(v8, v12, 4), 8)
    lane = tl.arange(0, 32)
    total += tl.gather(total, lane ^ 16, 0)
    tl.atomic_add(to + lane, total, mask=lane < 13, sem="relaxed")


@triton.jit
def _differentiate(
    scene: ty.Fields,
    places: ty.Fields,
    row: ty.Scalar,
    origin: ty.Vector,
    direction: ty.Vector,
    slab: ty.Fields,
    g: ty.Vector,
    p: ty.Slab,
    q: ty.Slab,
    moments: ty.Pointer,
    eps: ty.Scalar,
    dt: ty.Scalar,
    K: tl.constexpr,
    LISTED: tl.constexpr,
) -> None:
    """Add the slab's contribution to the moments of every Gaussian in it."""
    records, squared_cutoffs, some = scene[0], scene[1], slab[2]
    place, whole, stop = places
    while place < stop:
        found, following = next_candidate(scene, place, whole, slab, LISTED)
        if found:
            record = record_at(scene, place, LISTED)
            at = records + record.to(tl.int64) * 16
            passage = project(at, origin, direction)
            if inside_slab(passage, tl.load(squared_cutoffs + record), row, some, dt, K):
                f, tau = densities_along(tl.load(at + 12), passage, row, eps, dt, K)
                g_c = g[0] * tl.load(at + 13) + g[1] * tl.load(at + 14) + g[2] * tl.load(at + 15)
                w_f = (p * g_c[None, :] + q) * f
                w_f_tau = w_f * tau
                s = (tl.sum(w_f, 0), tl.sum(w_f_tau, 0), tl.sum(w_f_tau * tau, 0), tl.sum(p * f, 0))
                _add_moments(moments + record.to(tl.int64) * 16, passage, at, origin, direction, g, s)
        place = following


@triton.jit
def _load_gradients(
    out: ty.Pointer, grad_out: ty.Pointer, ray: ty.Lanes, valid: ty.Lanes
) -> tuple[ty.Vector, ty.Lanes, ty.Lanes]:
    """Gradients g of colour and depth, and the start of the suffix sum: g . outputs, the transmittance included."""
    g = load_vector(grad_out + ray * 5, valid, 0.0)
    g_through = tl.load(grad_out + ray * 5 + 3, mask=valid, other=0.0)
    g_depth = tl.load(grad_out + ray * 5 + 4, mask=valid, other=0.0)
    color = load_vector(out + ray * 5, valid, 0.0)
    remaining = g[0] * color[0] + g[1] * color[1] + g[2] * color[2]
    remaining += g_through * tl.load(out + ray * 5 + 3, mask=valid, other=0.0)
    remaining += g_depth * tl.load(out + ray * 5 + 4, mask=valid, other=0.0)
    return g, g_depth, remaining


@triton.jit(do_not_specialize=_CHANGING)
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
    boxes: ty.Pointer,
    links: ty.Pointer,
    nodes: ty.Scalar,
    starts: ty.Pointer,
    shells: ty.Pointer,
    number_of_shells: ty.Scalar,
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
    LISTED: tl.constexpr,
) -> None:
    """Differentiate a packet of rays: add its contribution to the records' moments [N, 16]."""
    scene = (records, squared_cutoffs, boxes, links, nodes, (starts, shells, number_of_shells))
    ray, valid = packet_rays(order, number, width, TILED)
    origin, direction, start, begin, end = open_packet(
        ray, valid, (origins, directions, nears, counts), boxes, (step, step_rest, offset), TILED
    )
    g, g_depth, remaining = _load_gradients(out, grad_out, ray, valid)
    transmittance = tl.full([32], 1.0, tl.float32)
    rows = tl.max(end, 0)
    rays = (origin, direction, start)
    row = next_row(scene, tl.zeros_like(rows), rows, rays, begin, end, step, LISTED)
    while row < rows:
        slab = open_slab(row, origin, direction, begin, end, step, K)
        places = open_candidates(scene, row, start, begin, end, step, K, LISTED)
        sigma, g_e, candidates, met = _collect_gradients(
            scene, places, row, origin, direction, slab, g, eps, step, K, LISTED
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
            _differentiate(scene, places, row, origin, direction, slab, g, p, q, moments, eps, step, K, LISTED)
            remaining -= tl.sum(contribution, 0)
            transmittance *= tl.exp(-tl.sum(tl.where(live, x, 0.0), 0))
            end = tl.where(transmittance > threshold, end, 0)
            rows = tl.max(end, 0)
        row += K
        if candidates == 0:
            row = next_row(scene, row, rows, rays, begin, end, step, LISTED)
