"""The vectors of integers against NumPy, lane by lane."""

import operator

import numpy as np
import pytest
from numba import njit

from ns_support.kernels.simd import LANES, any_lane, bits, load, pointer
from ns_support.kernels.simd_integers import exceeds, store_integers, to_integers

GENERATOR = np.random.default_rng(0)
A = GENERATOR.integers(-(2**24), 2**24, LANES).astype(np.float32)
B = GENERATOR.integers(0, 2**24, LANES).astype(np.float32)


def on_lanes(function):
    """A `function(integers...) -> integers` of the lanes of A and B, as an array."""
    inner = njit(function)

    @njit
    def run(a, b, out):
        store_integers(pointer(out), 0, inner(to_integers(load(pointer(a), 0)), to_integers(load(pointer(b), 0))))

    out = np.zeros(LANES, np.uint32)
    run(A, B, out)
    return out


@pytest.mark.parametrize("symbol", [operator.add, operator.mul, operator.xor, operator.and_])
def test_arithmetic_wraps_around_like_numpys(symbol):
    a, b, prime = A.astype(np.int64).astype(np.uint32), B.astype(np.uint32), np.uint32(2654435761)
    np.testing.assert_array_equal(on_lanes(lambda a, b: symbol(a, b)), symbol(a, b))
    np.testing.assert_array_equal(on_lanes(lambda a, b: symbol(a, prime)), symbol(a, prime))
    np.testing.assert_array_equal(on_lanes(lambda a, b: symbol(prime, b)), symbol(prime, b))


def test_comparison_is_without_a_sign():
    @njit
    def run(a, b):
        x, y = to_integers(load(pointer(a), 0)), to_integers(load(pointer(b), 0))
        return bits(exceeds(x, y)), any_lane(exceeds(x, np.uint32(2**32 - 1)))

    found, beyond = run(A, B)
    expected = A.astype(np.int64).astype(np.uint32) > B.astype(np.uint32)
    assert [bool(found >> lane & 1) for lane in range(LANES)] == expected.tolist()
    assert expected.any()
    assert not expected.all()
    assert not beyond


def test_whole_part_is_towards_zero():
    @njit
    def run(a, out):
        store_integers(pointer(out), 0, to_integers(load(pointer(a), 0)))

    out = np.zeros(LANES, np.uint32)
    run(np.resize(np.float32([1.9, -1.9, 0.0, 3.0]), LANES), out)
    assert out.view(np.int32)[:4].tolist() == [1, -1, 0, 3]
