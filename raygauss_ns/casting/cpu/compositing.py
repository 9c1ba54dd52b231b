"""Compositing the rows of a slab front to back, from densities to colour, and its gradient.

With x = sigma dt, phi(x) = (1 - e^-x) / x and E = sum f c:  colour += T dt phi E,  T *= e^-x.  See `reference`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ns_support.kernels.simd import (
    LANES,
    Pointer,
    Vector,
    any_lane,
    exp,
    get,
    load,
    maximum,
    put,
    splat,
    store,
    where,
)
from raygauss_ns.casting.cpu import layout as at
from raygauss_ns.casting.cpu.packets import March


@njit(cache=True, nogil=True)
def _absorption(x: Vector) -> tuple[Vector, Vector]:
    """Phi = (1 - e^-x) / x, and e^-x. The direct form of phi loses digits below 0.25."""
    phi = 1.0 + x * (-0.5 + x * (1 / 6 + x * (-1 / 24 + x * (1 / 120 + x * (-1 / 720 + x * (1 / 5040))))))
    e = 1.0 - x * phi
    thick = x >= 0.25
    if any_lane(thick):  # rare: steps are short, so most rows need neither an exponential nor a division
        e = where(thick, exp(-x), e)
        phi = where(thick, (1.0 - e) / maximum(x, 0.25), phi)
    return phi, e


@njit(cache=True, nogil=True)
def _phi_slope(x: Vector, e: Vector) -> Vector:
    """D phi / dx = (e^-x (1 + x) - 1) / x^2; the direct form loses digits below 0.5."""
    slope = 1 / 30 + x * (-1 / 144 + x * (1 / 840 + x * (-1 / 5760 + x * (1 / 45360))))
    slope = -0.5 + x * (1 / 3 + x * (-0.125 + x * slope))
    thick = x >= 0.5
    if any_lane(thick):
        safe = maximum(x, 0.5)
        slope = where(thick, (e * (1.0 + x) - 1.0) / (safe * safe), slope)
    return slope


@njit(cache=True, nogil=True)
def _scan_transmittance(ws: Pointer, e: Vector, threshold: np.float32) -> Vector:
    """Transmittance before each of 16 successive samples of one ray; `TRANSMITTANCE` becomes that behind the last."""
    store(ws, at.SCAN, e)
    transmittance = get(ws, at.TRANSMITTANCE)
    for lane in range(LANES):
        factor = get(ws, at.SCAN + lane)
        put(ws, at.SCAN + lane, transmittance)
        if transmittance > threshold:
            transmittance *= factor
    store(ws, at.TRANSMITTANCE, splat(transmittance))
    return load(ws, at.SCAN)


@njit(cache=True, nogil=True)
def _scan_remaining(ws: Pointer, contribution: Vector) -> Vector:
    """Remaining contribution (suffix sum) behind each of 16 successive samples; updates `REMAINING`."""
    store(ws, at.SCAN, contribution)
    remaining = get(ws, at.REMAINING)
    for lane in range(LANES):
        remaining -= get(ws, at.SCAN + lane)
        put(ws, at.SCAN + lane, remaining)
    store(ws, at.REMAINING, splat(remaining))
    return load(ws, at.SCAN)


@njit(cache=True, nogil=True)
def composite(ws: Pointer, row: int, low: int, high: int, march: March, single: bool) -> None:
    """Add rows `low` to `high` of the slab that begins at `row` to the lanes' colour and depth."""
    begin, end, world = load(ws, at.FIRST_ROW), load(ws, at.END_ROW), load(ws, at.RAY_DISTANCE)
    red, green, blue, depth = load(ws, at.COLOR_R), load(ws, at.COLOR_G), load(ws, at.COLOR_B), load(ws, at.DEPTH)
    transmittance = load(ws, at.TRANSMITTANCE)
    for j in range(low, high + 1):
        row_start, number = at.ROWS + (j - row) * at.ROW_SIZE, np.float32(j)
        exists = (begin <= number) & (end > number)
        x = where(exists, load(ws, row_start + at.SIGMA), 0.0) * march.dt
        phi, e = _absorption(x)
        before = _scan_transmittance(ws, e, march.threshold) if single else transmittance
        live = exists & (before > march.threshold)
        transmittance = where(live, before * e, before)
        weight = where(live, before * phi, 0.0)
        p = weight * march.dt
        red = red + p * load(ws, row_start + at.EMISSION_R)
        green = green + p * load(ws, row_start + at.EMISSION_G)
        blue = blue + p * load(ws, row_start + at.EMISSION_B)
        depth = depth + weight * x * (world + number * march.pitch)
    store(ws, at.COLOR_R, red)
    store(ws, at.COLOR_G, green)
    store(ws, at.COLOR_B, blue)
    store(ws, at.DEPTH, depth)
    if not single:
        store(ws, at.TRANSMITTANCE, transmittance)


@njit(cache=True, nogil=True)
def composite_gradients(ws: Pointer, row: int, low: int, high: int, march: March, single: bool) -> None:
    """Replace rows `low` to `high` of the slab by P and Q: dL/df_l = P (g . c_l) + Q."""
    dt = march.dt
    begin, end, world = load(ws, at.FIRST_ROW), load(ws, at.END_ROW), load(ws, at.RAY_DISTANCE)
    g_r, g_g, g_b, g_depth = load(ws, at.GRAD_R), load(ws, at.GRAD_G), load(ws, at.GRAD_B), load(ws, at.GRAD_DEPTH)
    transmittance, remaining = load(ws, at.TRANSMITTANCE), load(ws, at.REMAINING)
    for j in range(low, high + 1):
        row_start, number = at.ROWS + (j - row) * at.ROW_SIZE, np.float32(j)
        exists = (begin <= number) & (end > number)
        x = where(exists, load(ws, row_start + at.SIGMA), 0.0) * dt
        phi, e = _absorption(x)
        before = _scan_transmittance(ws, e, march.threshold) if single else transmittance
        live = exists & (before > march.threshold)
        transmittance = where(live, before * e, before)
        before = where(live, before, 0.0)
        g_e = (
            g_r * load(ws, row_start + at.EMISSION_R)
            + g_g * load(ws, row_start + at.EMISSION_G)
            + g_b * load(ws, row_start + at.EMISSION_B)
        )
        weight = before * phi
        p = weight * dt
        g_t = g_depth * (world + number * march.pitch)
        contribution = p * g_e + weight * x * g_t
        remaining = _scan_remaining(ws, contribution) if single else remaining - contribution
        q = before * _phi_slope(x, e) * (dt * dt) * g_e + before * e * dt * g_t - remaining * dt
        store(ws, row_start + at.GRADIENT_FACTOR, p)
        store(ws, row_start + at.GRADIENT_OFFSET, where(live, q, 0.0))
    if not single:
        store(ws, at.TRANSMITTANCE, transmittance)
        store(ws, at.REMAINING, remaining)
