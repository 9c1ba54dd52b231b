"""From density along the lanes to colour, and back: the rows of a slab composited front to back.

With x = sigma dt, phi(x) = (1 - e^-x) / x and E = sum f c:  colour += T dt phi E,  T *= e^-x.  See `reference`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from raygauss_ns.casting.packets import (
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
from raygauss_ns.casting.simd import LANES, Mask, Pointer, Vector, exp, get, load, maximum, put, splat, store, where


@njit(cache=True, nogil=True)
def _phi(x: Vector, e: Vector) -> Vector:
    """(1 - e^-x) / x from x and e = e^-x; the direct form loses digits below 0.25."""
    series = 1.0 + x * (-0.5 + x * (1 / 6 + x * (-1 / 24 + x * (1 / 120 + x * (-1 / 720 + x * (1 / 5040))))))
    return where(x < 0.25, series, (1.0 - e) / maximum(x, 0.25))


@njit(cache=True, nogil=True)
def _phi_slope(x: Vector, e: Vector) -> Vector:
    """D phi / dx = (e^-x (1 + x) - 1) / x^2; the direct form loses digits below 0.5."""
    series = 1 / 30 + x * (-1 / 144 + x * (1 / 840 + x * (-1 / 5760 + x * (1 / 45360))))
    series = -0.5 + x * (1 / 3 + x * (-0.125 + x * series))
    safe = maximum(x, 0.5)
    return where(x < 0.5, series, (e * (1.0 + x) - 1.0) / (safe * safe))


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
def _pass_row(ws: Pointer, j: int, at: int, march: March, single: bool) -> tuple[Vector, Vector, Vector, Mask]:
    """Pass a row: its optical depth x, e^-x, the transmittance before it and which lanes it counts for."""
    row = np.float32(j)
    exists = (load(ws, BEGIN) <= row) & (row < load(ws, END))
    x = where(exists, load(ws, at + SIGMA), 0.0) * march.dt
    e = exp(-x)
    if single:
        before = _scan_transmittance(ws, e, march.threshold)
        return x, e, before, exists & (before > march.threshold)
    before = load(ws, T)
    live = exists & (before > march.threshold)
    store(ws, T, where(live, before * e, before))
    return x, e, before, live


@njit(cache=True, nogil=True)
def composite(ws: Pointer, row: int, march: March, single: bool) -> None:
    """Add the slab's rows to the lanes' colour and depth."""
    for j in range(row, row + march.slab):
        at = ROWS + (j - row) * ROW_SIZE
        x, e, before, live = _pass_row(ws, j, at, march, single)
        weight = where(live, before * _phi(x, e), 0.0)
        p = weight * march.dt
        store(ws, R, load(ws, R) + p * load(ws, at + ER))
        store(ws, G, load(ws, G) + p * load(ws, at + EG))
        store(ws, B, load(ws, B) + p * load(ws, at + EB))
        t = load(ws, WORLD) + np.float32(j) * march.pitch
        store(ws, DEPTH, load(ws, DEPTH) + weight * x * t)


@njit(cache=True, nogil=True)
def composite_gradients(ws: Pointer, row: int, march: March, single: bool) -> None:
    """Replace the slab's rows by P and Q: dL/df_l = P (g . c_l) + Q."""
    dt = march.dt
    for j in range(row, row + march.slab):
        at = ROWS + (j - row) * ROW_SIZE
        x, e, before, live = _pass_row(ws, j, at, march, single)
        before = where(live, before, 0.0)
        g_e = load(ws, GR) * load(ws, at + ER) + load(ws, GG) * load(ws, at + EG) + load(ws, GB) * load(ws, at + EB)
        weight = before * _phi(x, e)
        p = weight * dt
        g_t = load(ws, GDEPTH) * (load(ws, WORLD) + np.float32(j) * march.pitch)
        contribution = p * g_e + weight * x * g_t
        if single:
            later = _scan_later(ws, contribution)
        else:
            later = load(ws, LATER) - contribution
            store(ws, LATER, later)
        q = before * _phi_slope(x, e) * (dt * dt) * g_e + before * e * dt * g_t - later * dt
        store(ws, at + P, p)
        store(ws, at + Q, where(live, q, 0.0))
