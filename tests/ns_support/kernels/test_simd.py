"""The vector operations against numpy, lane by lane."""

import operator

import numpy as np
import pytest
from numba import njit

from ns_support.kernels import simd
from ns_support.kernels.simd import LANES

NAN, INF = np.nan, np.inf
A = np.random.default_rng(0).normal(size=LANES).astype(np.float32)
B = np.random.default_rng(1).normal(size=LANES).astype(np.float32)


def on_lanes(function):
    """A compiled `function(vectors...) -> vector` as a function of arrays of 16."""
    inner = njit(function)

    @njit
    def unary(a, out):
        simd.store(simd.pointer(out), 0, inner(simd.load(simd.pointer(a), 0)))

    @njit
    def binary(a, b, out):
        simd.store(simd.pointer(out), 0, inner(simd.load(simd.pointer(a), 0), simd.load(simd.pointer(b), 0)))

    def run(*arrays):
        # The array must outlive the pointer: `out` is the caller's.
        out = np.full(LANES, NAN, np.float32)
        (unary if len(arrays) == 1 else binary)(*(np.asarray(array, np.float32) for array in arrays), out)
        return out

    return run


def of_lanes(function):
    """A compiled `function(vector) -> scalar` as a function of an array of 16."""
    inner = njit(function)

    @njit
    def run(a):
        return inner(simd.load(simd.pointer(a), 0))

    return lambda array: run(np.asarray(array, np.float32))


def lanes(*values):
    """16 lanes that repeat the values."""
    return np.resize(np.asarray(values, np.float32), LANES)


@pytest.mark.parametrize("symbol", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_arithmetic(symbol):
    np.testing.assert_array_equal(on_lanes(lambda a, b: symbol(a, b))(A, B), symbol(A, B))
    np.testing.assert_array_equal(on_lanes(lambda a: symbol(a, 3.0))(A), symbol(A, np.float32(3)))
    np.testing.assert_array_equal(on_lanes(lambda a: symbol(3.0, a))(A), symbol(np.float32(3), A))


def test_negation_keeps_the_sign_of_zero():
    negated = on_lanes(lambda a: -a)(lanes(1, -2, 0, -0.0))
    np.testing.assert_array_equal(negated, lanes(-1, 2, 0, 0))
    np.testing.assert_array_equal(np.signbit(negated), np.signbit(lanes(-1, 2, -0.0, 0)))


@pytest.mark.parametrize("symbol", [operator.lt, operator.le, operator.gt, operator.ge])
def test_comparisons_choose_in_where(symbol):
    a, b = lanes(1, 2, 2, NAN, 1, -INF), lanes(2, 1, 2, 1, NAN, INF)
    chosen = on_lanes(lambda a, b: simd.where(symbol(a, b), a, b))(a, b)
    np.testing.assert_array_equal(chosen, np.where(symbol(a, b), a, b))  # NaN compares false
    broadcast = on_lanes(lambda a: simd.where(symbol(a, 1.5), 1.0, -1.0))(a)
    np.testing.assert_array_equal(broadcast, np.where(symbol(a, np.float32(1.5)), 1, -1))


@pytest.mark.parametrize("symbol", [operator.and_, operator.or_])
def test_masks_combine(symbol):
    chosen = on_lanes(lambda a, b: simd.where(symbol(a > 0.0, b > 0.0), 1.0, 0.0))(A, B)
    np.testing.assert_array_equal(chosen, symbol(A > 0, B > 0))


@pytest.mark.parametrize(("function", "better"), [(simd.minimum, np.less), (simd.maximum, np.greater)])
def test_minimum_and_maximum_give_the_second_where_either_is_nan(function, better):
    a, b = lanes(1, 2, NAN, 3, INF, -INF), lanes(2, 1, 3, NAN, 0, 0)
    result = on_lanes(lambda a, b: function(a, b))(a, b)
    np.testing.assert_array_equal(result, np.where(better(a, b), a, b))


def test_sqrt_and_floor():
    x = lanes(0, 1, 2, 1e-30, 1e30, INF, 0.1)
    np.testing.assert_array_equal(on_lanes(lambda a: simd.sqrt(a))(x), np.sqrt(x))
    assert np.isnan(on_lanes(lambda a: simd.sqrt(a))(lanes(-1))).all()
    x = lanes(0.5, -0.5, 2, -2, 1e9, 2.999, -2.999, INF)
    np.testing.assert_array_equal(on_lanes(lambda a: simd.floor(a))(x), np.floor(x))


@pytest.mark.parametrize("lane", [0, 5, LANES - 1])
def test_any_lane_sees_each_lane(lane):
    anywhere = of_lanes(lambda a: simd.any_lane(a > 0.0))
    assert not anywhere(np.zeros(LANES))
    assert anywhere(np.eye(LANES)[lane])


def test_reductions():
    assert of_lanes(lambda a: simd.reduce_add(a))(np.arange(LANES)) == LANES * (LANES - 1) / 2
    assert of_lanes(lambda a: simd.reduce_add(a))(A) == pytest.approx(A.astype(np.float64).sum(), rel=1e-6)
    for lane in range(LANES):
        assert of_lanes_min(np.roll(np.arange(LANES), lane) - 3.0) == -3
        assert of_lanes_max(np.roll(np.arange(LANES), lane)) == LANES - 1


of_lanes_min = of_lanes(lambda a: simd.reduce_min(a))
of_lanes_max = of_lanes(lambda a: simd.reduce_max(a))


def test_sums_of_16_vectors_each_in_its_lane():
    matrix = np.random.default_rng(3).normal(size=(LANES, LANES)).astype(np.float32)

    @njit
    def run(matrix, out):
        p = simd.pointer(matrix)
        vectors = (
            *(simd.load(p, 0), simd.load(p, 16), simd.load(p, 32), simd.load(p, 48)),
            *(simd.load(p, 64), simd.load(p, 80), simd.load(p, 96), simd.load(p, 112)),
            *(simd.load(p, 128), simd.load(p, 144), simd.load(p, 160), simd.load(p, 176)),
            *(simd.load(p, 192), simd.load(p, 208), simd.load(p, 224), simd.load(p, 240)),
        )
        simd.store(simd.pointer(out), 0, simd.sums(vectors))

    out = np.zeros(LANES, np.float32)
    run(matrix, out)
    np.testing.assert_allclose(out, matrix.astype(np.float64).sum(1), rtol=0, atol=2e-6)


def test_a_mask_as_bits_and_the_lowest_of_them():
    @njit
    def run(array):
        mask = simd.bits(simd.load(simd.pointer(array), 0) > 0.0)
        return mask, simd.lowest_bit(mask), simd.lowest_bit(mask & (mask - 1)), simd.lowest_bit(mask - mask)

    array = np.zeros(LANES, np.float32)
    array[[3, LANES - 1]] = 1
    assert run(array) == ((1 << 3) | (1 << (LANES - 1)), 3, LANES - 1, 64)


@pytest.mark.parametrize("shape", [(3, LANES), (0, LANES), (5,)])
def test_aligned_zeros_begin_at_a_cache_line(shape):
    arrays = [simd.aligned_zeros(shape) for _ in range(4)]
    assert all(array.ctypes.data % 64 == 0 for array in arrays if array.size)
    assert all(array.shape == shape and array.dtype == np.float32 and not array.any() for array in arrays)
    assert all(array.flags.writeable and array.flags.c_contiguous for array in arrays)


def test_load_and_store_at_any_offset_touch_16_elements():
    @njit
    def copy(source, source_at, target, target_at):
        simd.store(simd.pointer(target), target_at, simd.load(simd.pointer(source), source_at))

    source, target = np.arange(100, dtype=np.float32), np.full(100, -1, np.float32)
    copy(source, 37, target, 3)
    expected = np.full(100, -1, np.float32)
    expected[3 : 3 + LANES] = np.arange(37, 37 + LANES)
    np.testing.assert_array_equal(target, expected)


def test_get_put_and_splat():
    @njit
    def run(floats, integers):
        simd.store(simd.pointer(floats), 0, simd.splat(2.5))
        simd.put(simd.pointer(floats), 7, simd.get(simd.pointer(floats), 6) + 1.0)
        simd.put(simd.pointer(integers), 1, simd.get(simd.pointer(integers), 0) - 3)

    floats, integers = np.zeros(LANES, np.float32), np.array([2**31 - 1, 0], np.int32)
    run(floats, integers)
    np.testing.assert_array_equal(floats, [2.5] * 7 + [3.5] + [2.5] * 8)
    np.testing.assert_array_equal(integers, [2**31 - 1, 2**31 - 4])


@pytest.fixture(scope="module")
def exp():
    @njit
    def run(x, out):
        for i in range(0, len(x), LANES):
            simd.store(simd.pointer(out), i, simd.exp(simd.load(simd.pointer(x), i)))

    def apply(x):
        x = np.ascontiguousarray(x, np.float32)
        out = np.zeros_like(x)
        run(x, out)
        return out

    return apply


def test_exp_is_accurate_over_its_range(exp):
    x = np.linspace(-87, 88, 2**20, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exp(x) / exact - 1).max() < 3e-7
    near_zero = np.concatenate([np.logspace(-30, 0, 2**10), -np.logspace(-30, 0, 2**10)]).astype(np.float32)
    assert np.abs(exp(near_zero) / np.exp(near_zero.astype(np.float64)) - 1).max() < 3e-7
    assert (exp(lanes(0, -0.0)) == 1).all()


def test_exp_beyond_its_range(exp):
    np.testing.assert_array_equal(exp(lanes(-88, -1e4, -3e38, -INF)), exp(lanes(-87)))
    np.testing.assert_array_equal(exp(lanes(89, 1e4, 3e38, INF)), exp(lanes(88)))
    assert 0 < exp(lanes(-INF))[0] < 2e-38
    assert np.isfinite(exp(lanes(INF))).all()
