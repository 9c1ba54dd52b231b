"""From density along the lanes to colour, and back: the rows of a slab composited front to back.

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
from raygauss_ns.casting.cpu.packets import (
    BEGIN,
    DEPTH,
    EB,
    EG,
    END,
    ER,
    GB,
    GDEPTH,
    GG,
    GR,
    LATER,
    ROW_SIZE,
    ROWS,
    SCAN,
    SIGMA,
    WORLD,
    B,
    G,
    March,
    P,
    Q,
    R,
    T,
)


@njit(cache=True, nogil=True)
def _absorption(x: Vector) -> tuple[Vector, Vector]:
    """Phi = (1 - e^-x) / x and e^-x; the direct form of the first loses digits below 0.25."""
    phi = 1.0 + x * (-0.5 + x * (1 / 6 + x * (-1 / 24 + x * (1 / 120 + x * (-1 / 720 + x * (1 / 5040))))))
    e = 1.0 - x * phi
    thick = x >= 0.25
    if any_lane(thick):  # rare: steps are short, so that most rows need no exponential and no division
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
    """Transmittance before each of 16 successive samples of one ray; `T` becomes what is left behind them."""
    store(ws, SCAN, e)
    transmittance = get(ws, T)
    for lane in range(LANES):
        factor = get(ws, SCAN + lane)
        put(ws, SCAN + lane, transmittance)
        if transmittance > threshold:
            transmittance *= factor
    store(ws, T, splat(transmittance))
    return load(ws, SCAN)


@njit(cache=True, nogil=True)
def _scan_later(ws: Pointer, contribution: Vector) -> Vector:
    """What is still to come behind each of 16 successive samples; `LATER` becomes what is left behind the last."""
    store(ws, SCAN, contribution)
    later = get(ws, LATER)
    for lane in range(LANES):
        later -= get(ws, SCAN + lane)
        put(ws, SCAN + lane, later)
    store(ws, LATER, splat(later))
    return load(ws, SCAN)


@njit(cache=True, nogil=True)
def composite(ws: Pointer, row: int, low: int, high: int, march: March, single: bool) -> None:
    """Add rows `low` to `high` of the slab that begins at `row` to the lanes' colour and depth."""
    begin, end, world = load(ws, BEGIN), load(ws, END), load(ws, WORLD)
    red, green, blue, depth = load(ws, R), load(ws, G), load(ws, B), load(ws, DEPTH)
    transmittance = load(ws, T)
    for j in range(low, high + 1):
        at, number = ROWS + (j - row) * ROW_SIZE, np.float32(j)
        exists = (begin <= number) & (end > number)
        x = where(exists, load(ws, at + SIGMA), 0.0) * march.dt
        phi, e = _absorption(x)
        before = _scan_transmittance(ws, e, march.threshold) if single else transmittance
        live = exists & (before > march.threshold)
        transmittance = where(live, before * e, before)
        weight = where(live, before * phi, 0.0)
        p = weight * march.dt
        red = red + p * load(ws, at + ER)
        green = green + p * load(ws, at + EG)
        blue = blue + p * load(ws, at + EB)
        depth = depth + weight * x * (world + number * march.pitch)
    store(ws, R, red)
    store(ws, G, green)
    store(ws, B, blue)
    store(ws, DEPTH, depth)
    if not single:
        store(ws, T, transmittance)


@njit(cache=True, nogil=True)
def composite_gradients(ws: Pointer, row: int, low: int, high: int, march: March, single: bool) -> None:
    """Replace rows `low` to `high` of the slab by P and Q: dL/df_l = P (g . c_l) + Q."""
    dt = march.dt
    begin, end, world = load(ws, BEGIN), load(ws, END), load(ws, WORLD)
    g_r, g_g, g_b, g_depth = load(ws, GR), load(ws, GG), load(ws, GB), load(ws, GDEPTH)
    transmittance, later = load(ws, T), load(ws, LATER)
    for j in range(low, high + 1):
        at, number = ROWS + (j - row) * ROW_SIZE, np.float32(j)
        exists = (begin <= number) & (end > number)
        x = where(exists, load(ws, at + SIGMA), 0.0) * dt
        phi, e = _absorption(x)
        before = _scan_transmittance(ws, e, march.threshold) if single else transmittance
        live = exists & (before > march.threshold)
        transmittance = where(live, before * e, before)
        before = where(live, before, 0.0)
        g_e = g_r * load(ws, at + ER) + g_g * load(ws, at + EG) + g_b * load(ws, at + EB)
        weight = before * phi
        p = weight * dt
        g_t = g_depth * (world + number * march.pitch)
        contribution = p * g_e + weight * x * g_t
        later = _scan_later(ws, contribution) if single else later - contribution
        q = before * _phi_slope(x, e) * (dt * dt) * g_e + before * e * dt * g_t - later * dt
        store(ws, at + P, p)
        store(ws, at + Q, where(live, q, 0.0))
    if not single:
        store(ws, T, transmittance)
        store(ws, LATER, later)
