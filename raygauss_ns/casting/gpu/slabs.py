"""What the kernels do with the Gaussians of a slab: add them up, and later add to their gradients.

Both go through the packet's list. `scene` and `listed` are as in `lists`. `window` is the number of entries, and a
number that is not 0 if the list is too short even for this slab: it is then written in batches (only with WINDOWED).
`slab` is, in this order: which rays have a sample in it, the least and the greatest distance of these samples, and the
rays as `collect` takes them.

Rows are counted from `origin`, distances in the list from the packet's own origins, which the growing step keeps apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.gpu.lists import collect, next_lane, overlapping, record_in
from raygauss_ns.casting.gpu.packets import densities_along, inside_slab, project


@triton.jit
def collect_colors(
    scene: ty.Fields,
    listed: ty.Fields,
    window: ty.Fields,
    row: ty.Scalar,
    origin: ty.Vector,
    slab: ty.Fields,
    eps: ty.Scalar,
    dt: ty.Scalar,
    K: tl.constexpr,
    TILED: tl.constexpr,
    WINDOWED: tl.constexpr,
) -> tuple[ty.Slab, ty.Slab, ty.Slab, ty.Slab, ty.Scalar, ty.Scalar]:
    """Sigma and E (3) of the slab, whether there was any candidate, and whether any was hit."""
    records, squared_cutoffs = scene[0], scene[1]
    some, near, far, rays = slab
    direction = rays[1]
    sigma = tl.zeros([K, 32], tl.float32)
    red = tl.zeros([K, 32], tl.float32)
    green = tl.zeros([K, 32], tl.float32)
    blue = tl.zeros([K, 32], tl.float32)
    candidates = tl.zeros_like(row)
    met = candidates
    count, full = window
    resume = tl.zeros_like(full)
    more = resume == 0
    while more:
        if WINDOWED:  # noqa: SIM102 - known to the compiler, unlike the next condition
            if full > 0:
                count, resume = collect(scene, listed, rays, resume, TILED)
        chunk = tl.zeros_like(count)
        while chunk < count:
            overlaps, found = overlapping(listed, chunk, count, near, far)
            lane = next_lane(overlaps, tl.zeros_like(count) - 1)
            while lane < 32:
                record = record_in(found, lane)
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
                lane = next_lane(overlaps, lane)
            chunk += 32
        more = resume > 0
    return sigma, red, green, blue, candidates, met


@triton.jit
def collect_gradients(
    scene: ty.Fields,
    listed: ty.Fields,
    window: ty.Fields,
    row: ty.Scalar,
    origin: ty.Vector,
    slab: ty.Fields,
    g: ty.Vector,
    eps: ty.Scalar,
    dt: ty.Scalar,
    K: tl.constexpr,
    TILED: tl.constexpr,
    WINDOWED: tl.constexpr,
) -> tuple[ty.Slab, ty.Slab, ty.Scalar, ty.Scalar]:
    """Sigma and g . E of the slab, whether there was any candidate, and whether any was hit."""
    records, squared_cutoffs = scene[0], scene[1]
    some, near, far, rays = slab
    direction = rays[1]
    sigma = tl.zeros([K, 32], tl.float32)
    g_e = tl.zeros([K, 32], tl.float32)
    candidates = tl.zeros_like(row)
    met = candidates
    count, full = window
    resume = tl.zeros_like(full)
    more = resume == 0
    while more:
        if WINDOWED:  # noqa: SIM102 - known to the compiler, unlike the next condition
            if full > 0:
                count, resume = collect(scene, listed, rays, resume, TILED)
        chunk = tl.zeros_like(count)
        while chunk < count:
            overlaps, found = overlapping(listed, chunk, count, near, far)
            lane = next_lane(overlaps, tl.zeros_like(count) - 1)
            while lane < 32:
                record = record_in(found, lane)
                candidates = 1
                at = records + record.to(tl.int64) * 16
                passage = project(at, origin, direction)
                if inside_slab(passage, tl.load(squared_cutoffs + record), row, some, dt, K):
                    met = 1
                    f, _ = densities_along(tl.load(at + 12), passage, row, eps, dt, K)
                    sigma += f
                    g_c = g[0] * tl.load(at + 13) + g[1] * tl.load(at + 14) + g[2] * tl.load(at + 15)
                    g_e += f * g_c[None, :]
                lane = next_lane(overlaps, lane)
            chunk += 32
        more = resume > 0
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
def differentiate(
    scene: ty.Fields,
    listed: ty.Fields,
    window: ty.Fields,
    row: ty.Scalar,
    origin: ty.Vector,
    slab: ty.Fields,
    g: ty.Vector,
    p: ty.Slab,
    q: ty.Slab,
    moments: ty.Pointer,
    eps: ty.Scalar,
    dt: ty.Scalar,
    K: tl.constexpr,
    TILED: tl.constexpr,
    WINDOWED: tl.constexpr,
) -> None:
    """Add the slab's contribution to the moments of every Gaussian in it."""
    records, squared_cutoffs = scene[0], scene[1]
    some, near, far, rays = slab
    direction = rays[1]
    count, full = window
    resume = tl.zeros_like(full)
    more = resume == 0
    while more:
        if WINDOWED:  # noqa: SIM102 - known to the compiler, unlike the next condition
            if full > 0:
                count, resume = collect(scene, listed, rays, resume, TILED)
        chunk = tl.zeros_like(count)
        while chunk < count:
            overlaps, found = overlapping(listed, chunk, count, near, far)
            lane = next_lane(overlaps, tl.zeros_like(count) - 1)
            while lane < 32:
                record = record_in(found, lane)
                at = records + record.to(tl.int64) * 16
                passage = project(at, origin, direction)
                if inside_slab(passage, tl.load(squared_cutoffs + record), row, some, dt, K):
                    f, tau = densities_along(tl.load(at + 12), passage, row, eps, dt, K)
                    g_c = g[0] * tl.load(at + 13) + g[1] * tl.load(at + 14) + g[2] * tl.load(at + 15)
                    w_f = (p * g_c[None, :] + q) * f
                    w_f_tau = w_f * tau
                    s = (tl.sum(w_f, 0), tl.sum(w_f_tau, 0), tl.sum(w_f_tau * tau, 0), tl.sum(p * f, 0))
                    _add_moments(moments + record.to(tl.int64) * 16, passage, at, origin, direction, g, s)
                lane = next_lane(overlaps, lane)
            chunk += 32
        more = resume > 0
