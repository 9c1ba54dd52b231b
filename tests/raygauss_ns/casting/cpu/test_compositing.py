"""phi and its slope in float32: series and direct form meet without losing digits."""

import numpy as np
import pytest
from numba import njit

from ns_support.kernels import simd
from raygauss_ns.casting.cpu.compositing import _absorption, _phi_slope


@njit
def phi_of(x):
    return _absorption(x)[0]


@njit
def remainder_of(x):
    return _absorption(x)[1]


@njit
def slope_of(x):
    return _phi_slope(x, simd.exp(-x))


def evaluate(function, x):
    @njit
    def run(x, out):
        for i in range(0, len(x), simd.LANES):
            simd.store(simd.pointer(out), i, function(simd.load(simd.pointer(x), i)))

    out = np.zeros_like(x)
    run(x, out)
    return out


@pytest.fixture(scope="module")
def depths():
    """Optical depths of a step: 0, nearly 0, both sides of the thresholds 0.25 and 0.5, and opaque."""
    around = [threshold * (1 + np.linspace(-1e-3, 1e-3, 64)) for threshold in (0.25, 0.5)]
    return np.concatenate([np.zeros(16), np.logspace(-30, 1.9, 16_000), *around]).astype(np.float32)


def test_phi(depths):
    x = depths.astype(np.float64)
    expected = np.divide(-np.expm1(-x), x, out=np.ones_like(x), where=x > 0)
    error = np.abs(evaluate(phi_of, depths) / expected - 1)
    assert error.max() < 1e-6
    assert (evaluate(phi_of, depths)[:16] == 1).all()


def test_what_a_step_lets_through(depths):
    """e^-x, whether it comes from the exponential or from phi, and with thick and thin lanes side by side."""
    mixed = np.stack([depths, depths[::-1]], axis=1).ravel()
    for x in (depths, mixed):
        expected = np.exp(-x.astype(np.float64))
        np.testing.assert_allclose(evaluate(remainder_of, x), expected, rtol=5e-7, atol=1e-30)


def test_phi_slope(depths):
    x = depths.astype(np.float64)
    series = -1 / 2 + x / 3 - x**2 / 8 + x**3 / 30
    direct = np.divide(np.exp(-x) * (1 + x) - 1, x**2, out=np.zeros_like(x), where=x > 1e-3)
    error = np.abs(evaluate(slope_of, depths) / np.where(x > 1e-3, direct, series) - 1)
    assert error.max() < 3e-6
    assert (evaluate(slope_of, depths)[:16] == -0.5).all()
