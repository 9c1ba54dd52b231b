"""The Numba kernels of `cpu.py`: one level of the grid at a time, over any range of points.

`width` is a tuple of F entries: its length belongs to its type, so that loops over it unroll. `rows`, `sums` and
`touched` are one level's part of the table, of its gradient, and of the flags of its blocks of `ROW_MULTIPLE` rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

import ns_support.kernels.compiling  # noqa: F401 - tells the user when kernels are compiled
from hardmine_ns.hash_encoding.levels import CELL_LIMIT, PRIME_Y, PRIME_Z, ROW_MULTIPLE

Array: TypeAlias = NDArray[Any]
Width: TypeAlias = tuple[int, ...]
Row: TypeAlias = np.unsignedinteger[Any]
Rows: TypeAlias = tuple[Row, Row, Row, Row, Row, Row, Row, Row]

# Of fastmath only fused multiply-adds: NaN and infinity must travel as they do in the reference.
_jit: Callable[..., Any] = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})

_ONE = np.uint32(1)
_PRIME_Y = np.uint32(PRIME_Y)
_PRIME_Z = np.uint32(PRIME_Z)
_BLOCK = np.uint32(ROW_MULTIPLE)
_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_UNIT = np.float32(1)
_LIMIT = np.float32(CELL_LIMIT)


class Level(NamedTuple):
    """One level's entry of `GridLevels`, in the kernels' types. Row indices are unsigned, lest Numba test for < 0."""

    column: int
    scale: np.float32
    resolution: np.uint32
    size: np.uint32
    dense: bool


@_jit
def _locate(coordinate: np.float32, scale: np.float32) -> tuple[Row, np.float32]:
    """Cell and place within it along one axis."""
    scaled = coordinate * scale + _HALF
    floor = np.floor(scaled)
    fraction = scaled - floor
    # Written so that NaN takes a limit too: its conversion to an integer would be undefined.
    floor = floor if floor > -_LIMIT else -_LIMIT
    floor = floor if floor < _LIMIT else _LIMIT
    return np.uint32(np.int32(floor)), fraction


@_jit
def _wrap(row: Row, size: np.uint32) -> Row:
    """A dense row modulo 2^32, then modulo the level's rows. Numba computes uint32 products and sums in 64 bits."""
    return np.uint64(np.uint32(row) % size)


@_jit
def _corner_rows(x: Row, y: Row, z: Row, level: Level) -> Rows:
    """Rows of a cell's 8 corners within their level, x fastest."""
    if level.dense:
        size, step_y, step_z = level.size, level.resolution, level.resolution * level.resolution
        r0 = x + y * step_y + z * step_z
        r2, r4 = r0 + step_y, r0 + step_z
        r6 = r4 + step_y
        r1, r3, r5, r7 = r0 + _ONE, r2 + _ONE, r4 + _ONE, r6 + _ONE
        if r7 >= size:  # at the far border, or outside the unit cube
            r0, r1, r2, r3 = _wrap(r0, size), _wrap(r1, size), _wrap(r2, size), _wrap(r3, size)
            r4, r5, r6, r7 = _wrap(r4, size), _wrap(r5, size), _wrap(r6, size), _wrap(r7, size)
        return r0, r1, r2, r3, r4, r5, r6, r7
    mask = level.size - _ONE  # the size of a hashed level is a power of two
    y0, z0 = y * _PRIME_Y, z * _PRIME_Z
    y1, z1 = y0 + _PRIME_Y, z0 + _PRIME_Z
    h0, h2, h4, h6 = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
    r0, r2, r4, r6 = (x ^ h0) & mask, (x ^ h2) & mask, (x ^ h4) & mask, (x ^ h6) & mask
    x1 = x + _ONE
    return r0, (x1 ^ h0) & mask, r2, (x1 ^ h2) & mask, r4, (x1 ^ h4) & mask, r6, (x1 ^ h6) & mask


@_jit
def _is_zero(array: Array, row: int, column: int, width: Width) -> bool:
    zero = True
    for f in range(len(width)):
        zero &= array[row, column + f] == _ZERO  # `and` would branch, and which rows are zero can't be predicted
    return zero


@_jit
def forward(positions: Array, rows: Array, output: Array, level: Level, start: int, stop: int, width: Width) -> None:
    """Write a level's features of the points [start, stop) to its columns of the output."""
    for i in range(start, stop):
        x, fx = _locate(positions[i, 0], level.scale)
        y, fy = _locate(positions[i, 1], level.scale)
        z, fz = _locate(positions[i, 2], level.scale)
        r0, r1, r2, r3, r4, r5, r6, r7 = _corner_rows(x, y, z, level)
        gx, gy, gz = _UNIT - fx, _UNIT - fy, _UNIT - fz
        w0, w1, w2, w3 = gy * gz, fy * gz, gy * fz, fy * fz
        for f in range(len(width)):
            low = rows[r0, f] * w0 + rows[r2, f] * w1 + rows[r4, f] * w2 + rows[r6, f] * w3
            high = rows[r1, f] * w0 + rows[r3, f] * w1 + rows[r5, f] * w2 + rows[r7, f] * w3
            output[i, level.column + f] = gx * low + fx * high


@_jit
def add_table_gradient(
    positions: Array, cotangent: Array, sums: Array, touched: Array, level: Level, width: Width
) -> None:
    """Add all points' gradients to a level's sums, and flag the blocks written to."""
    for i in range(positions.shape[0]):
        if _is_zero(cotangent, i, level.column, width):
            continue
        x, fx = _locate(positions[i, 0], level.scale)
        y, fy = _locate(positions[i, 1], level.scale)
        z, fz = _locate(positions[i, 2], level.scale)
        r0, r1, r2, r3, r4, r5, r6, r7 = _corner_rows(x, y, z, level)
        gx, gy, gz = _UNIT - fx, _UNIT - fy, _UNIT - fz
        w0, w1, w2, w3 = gy * gz, fy * gz, gy * fz, fy * fz
        for f in range(len(width)):
            low = gx * cotangent[i, level.column + f]
            high = fx * cotangent[i, level.column + f]
            sums[r0, f] += w0 * low
            sums[r1, f] += w0 * high
            sums[r2, f] += w1 * low
            sums[r3, f] += w1 * high
            sums[r4, f] += w2 * low
            sums[r5, f] += w2 * high
            sums[r6, f] += w3 * low
            sums[r7, f] += w3 * high
        for row in (r0, r1, r2, r3, r4, r5, r6, r7):
            touched[row // _BLOCK] = 1


@_jit
def add_position_gradient(
    positions: Array,
    rows: Array,
    cotangent: Array,
    gradient: Array,
    level: Level,
    start: int,
    stop: int,
    width: Width,
) -> None:
    """Add a level's part of the gradient with respect to the positions of the points [start, stop)."""
    for i in range(start, stop):
        x, fx = _locate(positions[i, 0], level.scale)
        y, fy = _locate(positions[i, 1], level.scale)
        z, fz = _locate(positions[i, 2], level.scale)
        r0, r1, r2, r3, r4, r5, r6, r7 = _corner_rows(x, y, z, level)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _ZERO
        for f in range(len(width)):
            g = cotangent[i, level.column + f]
            s0 += rows[r0, f] * g
            s1 += rows[r1, f] * g
            s2 += rows[r2, f] * g
            s3 += rows[r3, f] * g
            s4 += rows[r4, f] * g
            s5 += rows[r5, f] * g
            s6 += rows[r6, f] * g
            s7 += rows[r7, f] * g
        gx, gy, gz = _UNIT - fx, _UNIT - fy, _UNIT - fz
        along_x = gz * (gy * (s1 - s0) + fy * (s3 - s2)) + fz * (gy * (s5 - s4) + fy * (s7 - s6))
        along_y = gz * (gx * (s2 - s0) + fx * (s3 - s1)) + fz * (gx * (s6 - s4) + fx * (s7 - s5))
        along_z = gy * (gx * (s4 - s0) + fx * (s5 - s1)) + fy * (gx * (s6 - s2) + fx * (s7 - s3))
        gradient[i, 0] += level.scale * along_x
        gradient[i, 1] += level.scale * along_y
        gradient[i, 2] += level.scale * along_z


@_jit
def move_rows(sums: Array, touched: Array, rows: Array, values: Array, width: Width) -> int:
    """Move the non-zero rows out of `sums`, leaving it and `touched` zero, and return how many they are.

    `rows` and `values` need room for one row more than that.
    """
    count = 0
    for block in range(len(touched)):
        if touched[block]:
            touched[block] = 0
            for row in range(block * ROW_MULTIPLE, (block + 1) * ROW_MULTIPLE):
                # Without a branch on the row: a zero row is written too, and overwritten by the next.
                rows[count] = row
                for f in range(len(width)):
                    values[count, f] = sums[row, f]
                count += not _is_zero(sums, row, 0, width)
                for f in range(len(width)):
                    sums[row, f] = _ZERO
    return count
