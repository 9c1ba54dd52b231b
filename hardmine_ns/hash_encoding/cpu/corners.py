"""Where 16 points lie in a level of the grid: the rows of their cells' corners, and the weights of these.

Computed on vectors, a point in each lane, and written to memory, from where the kernels read them point by point: the
rows that a point needs lie anywhere in the table.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

import ns_support.kernels.compiling  # noqa: F401 - tells the user when kernels are compiled
from hardmine_ns.hash_encoding.levels import CELL_LIMIT, PRIME_Y, PRIME_Z
from ns_support.kernels.arrays import FloatArray
from ns_support.kernels.simd import (
    LANES,
    Pointer,
    Vector,
    aligned_zeros,
    any_lane,
    floor,
    get,
    load,
    maximum,
    minimum,
    put,
    splat,
    store,
)
from ns_support.kernels.simd_integers import exceeds, store_integers, to_integers

ROW = tuple(corner * LANES for corner in range(8))
"""Where the rows of each corner begin, x fastest."""
LOW = tuple(2 * axis * LANES for axis in range(3))
"""Where the weights of the lower corners along each axis begin."""
HIGH = tuple((2 * axis + 1) * LANES for axis in range(3))
"""Where those of the upper corners begin: the places within the cells."""
EDGE = tuple((6 + pair) * LANES for pair in range(4))
"""Where the weights of the four edges along x begin, y faster than z."""
_NUM_ROWS, _NUM_WEIGHTS = 8 * LANES, 10 * LANES

Row: TypeAlias = np.intp

_inline = njit(inline="always")
_jit = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})

_ONE = np.uint32(1)
_TWO = np.uint32(2)
_PRIME_Y = np.uint32(PRIME_Y)
_PRIME_Z = np.uint32(PRIME_Z)
_LIMIT = np.float32(CELL_LIMIT)


class Level(NamedTuple):
    """One level's entry of `GridLevels`, in the kernels' types. Row indices are unsigned, lest Numba test for < 0."""

    column: int
    scale: np.float32
    resolution: np.uint32
    size: np.uint32
    dense: bool


class Corners(NamedTuple):
    """Where `locate` writes to. Made outside of the kernels: a pointer does not keep an array of theirs alive."""

    rows: NDArray[np.uint32]
    """[8, 16] rows of the corners, from `ROW` on."""
    weights: FloatArray
    """[10, 16] weights, from `LOW`, `HIGH` and `EDGE` on."""

    @classmethod
    def new(cls) -> Corners:
        """Memory for one thread."""
        return cls(aligned_zeros((_NUM_ROWS,), np.uint32), aligned_zeros((_NUM_WEIGHTS,)))


@_inline
def _cell(whole: Vector) -> Vector:
    """A cell's number along one axis. Of NaN `maximum` takes the limit: its conversion would be undefined."""
    return to_integers(minimum(maximum(whole, -_LIMIT), _LIMIT))


@_jit
def locate(columns: Pointer, first: int, points: int, level: Level, rows: Pointer, weights: Pointer) -> None:
    """Rows and weights of the 16 points from `first` on.

    Args:
        columns: [3, points] float32, the points' coordinates.
        first: a multiple of 16.
        points: a multiple of 16.
        level: where they are looked up.
        rows: [8, 16] uint32, written.
        weights: [10, 16] float32, written.
    """
    half, unit = splat(np.float32(0.5)), splat(np.float32(1.0))
    x = load(columns, first) * level.scale + half
    y = load(columns, points + first) * level.scale + half
    z = load(columns, 2 * points + first) * level.scale + half
    wx, wy, wz = floor(x), floor(y), floor(z)
    fx, fy, fz = x - wx, y - wy, z - wz
    gy, gz = unit - fy, unit - fz
    store(weights, LOW[0], unit - fx)
    store(weights, LOW[1], gy)
    store(weights, LOW[2], gz)
    store(weights, HIGH[0], fx)
    store(weights, HIGH[1], fy)
    store(weights, HIGH[2], fz)
    store(weights, EDGE[0], gy * gz)
    store(weights, EDGE[1], fy * gz)
    store(weights, EDGE[2], gy * fz)
    store(weights, EDGE[3], fy * fz)
    cx, cy, cz = _cell(wx), _cell(wy), _cell(wz)
    if level.dense:
        step_z = np.uint32(level.resolution * level.resolution)
        r0 = cx + cy * level.resolution + cz * step_z
        r2, r4 = r0 + level.resolution, r0 + step_z
        r6 = r4 + level.resolution
        _store_rows(rows, ROW[0], r0, r0 + _ONE, r2, r2 + _ONE)
        _store_rows(rows, ROW[4], r4, r4 + _ONE, r6, r6 + _ONE)
        last = np.uint32(max(level.resolution, _TWO) - _TWO)
        if any_lane(exceeds(cx, last) | exceeds(cy, last) | exceeds(cz, last)):
            # At the far border, or outside of the unit cube: modulo 2^32, then modulo the level's rows.
            for entry in range(_NUM_ROWS):
                put(rows, entry, np.uint32(get(rows, entry) % level.size))
        return
    mask = np.uint32(level.size - _ONE)  # the size of a hashed level is a power of two
    y0, z0 = cy * _PRIME_Y, cz * _PRIME_Z
    y1, z1 = y0 + _PRIME_Y, z0 + _PRIME_Z
    h0, h2, h4, h6 = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
    x1 = cx + _ONE
    _store_rows(rows, ROW[0], (cx ^ h0) & mask, (x1 ^ h0) & mask, (cx ^ h2) & mask, (x1 ^ h2) & mask)
    _store_rows(rows, ROW[4], (cx ^ h4) & mask, (x1 ^ h4) & mask, (cx ^ h6) & mask, (x1 ^ h6) & mask)


@_inline
def _store_rows(rows: Pointer, at: int, r0: Vector, r1: Vector, r2: Vector, r3: Vector) -> None:
    """Write the rows of four corners that follow one another."""
    store_integers(rows, at, r0)
    store_integers(rows, at + LANES, r1)
    store_integers(rows, at + 2 * LANES, r2)
    store_integers(rows, at + 3 * LANES, r3)


@_inline
def rows_of(rows: Pointer, lane: int, features: int) -> tuple[Row, Row, Row, Row, Row, Row, Row, Row]:
    """Where the eight rows of a lane's point begin in a table of so many features."""
    return (
        np.intp(get(rows, ROW[0] + lane)) * features,
        np.intp(get(rows, ROW[1] + lane)) * features,
        np.intp(get(rows, ROW[2] + lane)) * features,
        np.intp(get(rows, ROW[3] + lane)) * features,
        np.intp(get(rows, ROW[4] + lane)) * features,
        np.intp(get(rows, ROW[5] + lane)) * features,
        np.intp(get(rows, ROW[6] + lane)) * features,
        np.intp(get(rows, ROW[7] + lane)) * features,
    )


@_inline
def edge_weights(weights: Pointer, lane: int) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Weights of the four edges along x of a lane's cell."""
    return (
        get(weights, EDGE[0] + lane),
        get(weights, EDGE[1] + lane),
        get(weights, EDGE[2] + lane),
        get(weights, EDGE[3] + lane),
    )
