"""The hash encoding and the density network for a few points of one program: functions of `search.search_kernel`.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hardmine_ns.hash_encoding.gpu.encoding import cell_of, share
from ns_support.kernels import triton_types as ty


@triton.jit
def load_levels(
    scales: ty.Pointer, geometry: ty.Pointer, column: ty.Lanes, exists: ty.Lanes, F: tl.constexpr
) -> ty.Fields:
    """Of the level that each column [1, IN] of the encoding belongs to, what `encode` needs, as `_row` names it.

    The row of a vertex is x + y a + z b in a dense level, and x ^ (y a) ^ (z b) in a hashed one.
    """
    level = tl.where(exists, column // F, 0)
    at = geometry + level * 4
    first = tl.load(at).to(tl.int32)
    size = tl.load(at + 1).to(tl.uint32)
    resolution = tl.load(at + 2).to(tl.uint32)
    dense = tl.load(at + 3) != 0
    a = tl.where(dense, resolution, 2654435761)
    b = tl.where(dense, resolution * resolution, 805459861)
    return tl.load(scales + level), first, size, dense, a, b


@triton.jit
def _row(x: ty.Rows, y: ty.Rows, z: ty.Rows, level: ty.Fields) -> ty.Rows:
    """Row of the table, int32, of a vertex whose y and z have been multiplied; `reference.table_rows`."""
    _, first, size, dense, _, _ = level
    row = tl.where(dense, x + y + z, (x ^ y ^ z) & (size - 1))
    # Of points in the unit cube, a dense level's rows reach less than once around.
    return tl.where(row >= size, row - size, row).to(tl.int32) + first


@triton.jit
def encode(
    unit: ty.Vector, exists: ty.Lanes, table: ty.Pointer, level: ty.Fields, column: ty.Lanes, wanted: ty.Lanes,
    F: tl.constexpr,
) -> ty.Rows:  # fmt: skip
    """Features [ROWS, IN] of points [ROWS] in the unit cube, whose number must be less than 2^31 in the table.

    Column l F + f is feature f of level l; what is not `wanted` [1, IN] is 0.
    """
    scale, _, _, _, a, b = level
    nothing = tl.zeros_like(exists[:, None] & wanted).to(tl.float32)
    x, fx = cell_of(unit[0][:, None] + nothing, scale)
    y, fy = cell_of(unit[1][:, None] + nothing, scale)
    z, fz = cell_of(unit[2][:, None] + nothing, scale)
    y *= a
    z *= b
    mask = exists[:, None] & wanted
    total = nothing
    for corner in tl.static_range(8):
        row = _row(x + (corner & 1), y + (corner >> 1 & 1) * a, z + (corner >> 2) * b, level)
        weight = share(fx, corner & 1) * share(fy, corner >> 1 & 1) * share(fz, corner >> 2)
        total += weight * tl.load(table + row * F + column % F, mask=mask, other=0.0)
    return total


@triton.jit
def network(
    features: ty.Rows,
    first: ty.Pointer,
    second: ty.Pointer,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    UNITS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> ty.Rows:
    """Outputs [ROWS, OUT] of the density network for features [ROWS, IN], of which `INPUTS` are not 0.

    The layers' weights are [HIDDEN, INPUTS] and [OUT, HIDDEN]. Some units of the hidden layer at a time: registers have
    no room for more. NVIDIA's tensor cores multiply in TF32; three products of the leading and the remaining digits
    make up float32 (`PRECISION` "tf32x3").
    """
    i = tl.arange(0, IN)
    o = tl.arange(0, OUT)
    total = tl.zeros([features.shape[0], OUT], tl.float32)
    for begin in range(0, HIDDEN, UNITS):
        h = begin + tl.arange(0, UNITS)
        exists = h < HIDDEN
        into = tl.load(
            first + h[None, :] * INPUTS + i[:, None], mask=(i[:, None] < INPUTS) & exists[None, :], other=0.0
        )
        hidden = tl.maximum(tl.dot(features, into, input_precision=PRECISION), 0.0)
        out = tl.load(second + o[None, :] * HIDDEN + h[:, None], mask=exists[:, None], other=0.0)
        total = tl.dot(hidden, out, total, input_precision=PRECISION)
    return total
