"""The Numba kernels of `launch.py`: one level of the grid at a time, over any range of points.

`width` is a tuple of F entries: its length belongs to its type, so that loops over it unroll. `columns` are the points'
coordinates, [3, a multiple of 16], and ranges of points begin at multiples of 16. `corners` is overwritten. `rows`,
`sums` and `touched` are one level's part of the table, of its gradient, and of the flags of its blocks of
`ROW_MULTIPLE` rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

import ns_support.kernels.compiling  # noqa: F401 - tells the user when kernels are compiled
from hardmine_ns.hash_encoding.cpu import corners as at
from hardmine_ns.hash_encoding.cpu.corners import Corners, Level
from hardmine_ns.hash_encoding.levels import ROW_MULTIPLE
from ns_support.kernels.simd import LANES, get, pointer, put

Array: TypeAlias = NDArray[Any]
Width: TypeAlias = tuple[int, ...]

# Of fastmath only fused multiply-adds: NaN and infinity must travel as they do in the reference.
_jit: Callable[..., Any] = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})

_ZERO = np.float32(0)


@_jit
def _is_zero(array: Array, row: int, column: int, width: Width) -> bool:
    zero = True
    for f in range(len(width)):
        zero &= array[row, column + f] == _ZERO  # `and` would branch, and which rows are zero can't be predicted
    return zero


@_jit
def forward(
    columns: Array, corners: Corners, rows: Array, output: Array, level: Level, start: int, stop: int, width: Width
) -> None:
    """Write a level's features of the points [start, stop) to its columns of the output."""
    features, out_dim = len(width), output.shape[1]
    r, w, points = pointer(corners.rows), pointer(corners.weights), pointer(columns)
    table, out = pointer(rows), pointer(output)
    for first in range(start, stop, LANES):
        at.locate(points, first, columns.shape[1], level, r, w)
        for lane in range(min(LANES, stop - first)):
            r0, r1, r2, r3, r4, r5, r6, r7 = at.rows_of(r, lane, features)
            w0, w1, w2, w3 = at.edge_weights(w, lane)
            gx, fx = get(w, at.LOW[0] + lane), get(w, at.HIGH[0] + lane)
            place = (first + lane) * out_dim + level.column
            for f in range(len(width)):
                low = get(table, r0 + f) * w0 + get(table, r2 + f) * w1
                low = low + get(table, r4 + f) * w2 + get(table, r6 + f) * w3
                high = get(table, r1 + f) * w0 + get(table, r3 + f) * w1
                high = high + get(table, r5 + f) * w2 + get(table, r7 + f) * w3
                put(out, place + f, gx * low + fx * high)


@_jit
def add_table_gradient(
    columns: Array, corners: Corners, cotangent: Array, sums: Array, touched: Array, level: Level, width: Width
) -> None:
    """Add all points' gradients to a level's sums, and flag the blocks written to."""
    features, points = len(width), len(cotangent)
    r, w, places = pointer(corners.rows), pointer(corners.weights), pointer(columns)
    out, flags = pointer(sums), pointer(touched)
    for first in range(0, points, LANES):
        at.locate(places, first, columns.shape[1], level, r, w)
        for lane in range(min(LANES, points - first)):
            i = first + lane
            if _is_zero(cotangent, i, level.column, width):
                continue
            rows = at.rows_of(r, lane, features)
            w0, w1, w2, w3 = at.edge_weights(w, lane)
            gx, fx = get(w, at.LOW[0] + lane), get(w, at.HIGH[0] + lane)
            for f in range(len(width)):
                low = gx * cotangent[i, level.column + f]
                high = fx * cotangent[i, level.column + f]
                # One after the other: in a wrapped or hashed level two corners may share a row.
                put(out, rows[0] + f, get(out, rows[0] + f) + w0 * low)
                put(out, rows[1] + f, get(out, rows[1] + f) + w0 * high)
                put(out, rows[2] + f, get(out, rows[2] + f) + w1 * low)
                put(out, rows[3] + f, get(out, rows[3] + f) + w1 * high)
                put(out, rows[4] + f, get(out, rows[4] + f) + w2 * low)
                put(out, rows[5] + f, get(out, rows[5] + f) + w2 * high)
                put(out, rows[6] + f, get(out, rows[6] + f) + w3 * low)
                put(out, rows[7] + f, get(out, rows[7] + f) + w3 * high)
            for corner in range(8):
                put(flags, np.intp(get(r, corner * LANES + lane)) // ROW_MULTIPLE, np.uint8(1))


@_jit
def add_position_gradient(
    columns: Array,
    corners: Corners,
    rows: Array,
    cotangent: Array,
    gradient: Array,
    level: Level,
    start: int,
    stop: int,
    width: Width,
) -> None:
    """Add a level's part of the gradient with respect to the positions of the points [start, stop)."""
    features = len(width)
    r, w, points = pointer(corners.rows), pointer(corners.weights), pointer(columns)
    table = pointer(rows)
    for first in range(start, stop, LANES):
        at.locate(points, first, columns.shape[1], level, r, w)
        for lane in range(min(LANES, stop - first)):
            i = first + lane
            r0, r1, r2, r3, r4, r5, r6, r7 = at.rows_of(r, lane, features)
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _ZERO
            for f in range(len(width)):
                g = cotangent[i, level.column + f]
                s0 += get(table, r0 + f) * g
                s1 += get(table, r1 + f) * g
                s2 += get(table, r2 + f) * g
                s3 += get(table, r3 + f) * g
                s4 += get(table, r4 + f) * g
                s5 += get(table, r5 + f) * g
                s6 += get(table, r6 + f) * g
                s7 += get(table, r7 + f) * g
            gx, gy, gz = get(w, at.LOW[0] + lane), get(w, at.LOW[1] + lane), get(w, at.LOW[2] + lane)
            fx, fy, fz = get(w, at.HIGH[0] + lane), get(w, at.HIGH[1] + lane), get(w, at.HIGH[2] + lane)
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
