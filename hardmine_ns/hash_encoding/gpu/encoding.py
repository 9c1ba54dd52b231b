"""The hash encoding on a GPU: Triton kernels and the autograd.Function around them.

A program is one level of a block of points. Levels are the slow index of the grid: while one is worked on, its part of
the table stays in the cache. The table's gradient is dense and summed in float32 by atomic additions, in no fixed
order. Tables are float32 or float16; positions are always float32, whose digits the fine levels need.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardmine_ns.hash_encoding.levels import GridLevels
from ns_support.kernels import triton_types as ty

_BLOCK = 128
_WARPS = 4

TABLE_TYPES = (torch.float32, torch.float16)


# ---- kernels ----


@triton.jit
def cell_of(position: ty.Lanes, scale: ty.Scalar) -> tuple[ty.Lanes, ty.Lanes]:
    """Integer cell along an axis, as 32-bit unsigned, and the fraction beyond it."""
    # One rounding, as in the reference: two would move points across the borders of fine cells.
    scaled = tl.fma(position, tl.zeros_like(position) + scale, tl.zeros_like(position) + 0.5)
    floor = tl.floor(scaled)
    # As in `levels.CELL_LIMIT`; a position that is not a number has cell -2^30.
    cell = tl.minimum(tl.maximum(floor, -1073741824.0), 1073741824.0).to(tl.int32)
    return cell.to(tl.uint32), scaled - floor


@triton.jit
def _load_cells(
    positions: ty.Pointer, point: ty.Lanes, valid: ty.Lanes, scale: ty.Scalar
) -> tuple[ty.Vector, ty.Vector]:
    """Cells and fractions of a block of points."""
    cx, fx = cell_of(tl.load(positions + point * 3, mask=valid, other=0.0), scale)
    cy, fy = cell_of(tl.load(positions + point * 3 + 1, mask=valid, other=0.0), scale)
    cz, fz = cell_of(tl.load(positions + point * 3 + 2, mask=valid, other=0.0), scale)
    return (cx, cy, cz), (fx, fy, fz)


@triton.jit
def _load_level(geometry: ty.Pointer, level: ty.Scalar) -> ty.Fields:
    """First row, rows, vertices along an axis and whether the level is dense."""
    at = geometry + level * 4
    return (
        tl.load(at).to(tl.int64),
        tl.load(at + 1).to(tl.uint32),
        tl.load(at + 2).to(tl.uint32),
        tl.load(at + 3),
    )


@triton.jit
def _row(cell: ty.Vector, level: ty.Fields, CORNER: tl.constexpr) -> ty.Lanes:
    """Row in the table, int64, of one of a cell's 8 corners, x fastest; `reference.table_rows` states the rule."""
    first, size, resolution, dense = level
    x = cell[0] + (CORNER & 1)
    y = cell[1] + (CORNER >> 1 & 1)
    z = cell[2] + (CORNER >> 2)
    if dense != 0:
        row = (x + y * resolution + z * (resolution * resolution)) % size
    else:
        # The size of a level that is not dense is a power of two.
        row = (x ^ (y * 2654435761) ^ (z * 805459861)) & (size - 1)
    return row.to(tl.int64) + first


@triton.jit
def share(fraction: ty.Lanes, UPPER: tl.constexpr) -> ty.Lanes:
    """Weight of the lower or upper neighbour along an axis."""
    if UPPER:
        return fraction
    else:  # noqa: RET505  (Triton compiles one branch)
        return 1.0 - fraction


@triton.jit
def _block(number: ty.Scalar, F: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> ty.Fields:
    """Points int64 [BLOCK] and which exist; features [1, WIDTH] and which entries [BLOCK, WIDTH] exist."""
    point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, WIDTH)[None, :]
    valid = point < number
    return point, valid, feature, valid[:, None] & (feature < F)


@triton.jit(do_not_specialize=["number"])
def forward_kernel(
    positions: ty.Pointer,
    table: ty.Pointer,
    scales: ty.Pointer,
    geometry: ty.Pointer,
    out: ty.Pointer,
    number: ty.Scalar,
    num_levels: ty.Scalar,
    F: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Encode a block of points at one level: out [N, L F]."""
    level_index = tl.program_id(1)
    point, valid, feature, mask = _block(number, F, WIDTH, BLOCK)
    cell, fraction = _load_cells(positions, point, valid, tl.load(scales + level_index))
    level = _load_level(geometry, level_index)
    total = tl.zeros([BLOCK, WIDTH], tl.float32)
    for corner in tl.static_range(8):
        row = _row(cell, level, corner)
        weight = share(fraction[0], corner & 1) * share(fraction[1], corner >> 1 & 1)
        weight = weight * share(fraction[2], corner >> 2)
        values = tl.load(table + row[:, None] * F + feature, mask=mask, other=0.0)
        total += weight[:, None] * values.to(tl.float32)
    at = out + point[:, None] * (num_levels * F) + level_index * F + feature
    tl.store(at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["number"])
def table_gradient_kernel(
    positions: ty.Pointer,
    cotangent: ty.Pointer,
    scales: ty.Pointer,
    geometry: ty.Pointer,
    gradient: ty.Pointer,
    number: ty.Scalar,
    num_levels: ty.Scalar,
    F: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add a block of points at one level to the table's gradient, float32 [rows, F]."""
    level_index = tl.program_id(1)
    point, valid, feature, mask = _block(number, F, WIDTH, BLOCK)
    cell, fraction = _load_cells(positions, point, valid, tl.load(scales + level_index))
    level = _load_level(geometry, level_index)
    at = cotangent + point[:, None] * (num_levels * F) + level_index * F + feature
    incoming = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    # Points without a gradient may be many, and all the same: they would get in each other's way.
    matters = mask & (incoming != 0.0)
    for corner in tl.static_range(8):
        row = _row(cell, level, corner)
        weight = share(fraction[0], corner & 1) * share(fraction[1], corner >> 1 & 1)
        weight = weight * share(fraction[2], corner >> 2)
        change = weight[:, None] * incoming
        tl.atomic_add(gradient + row[:, None] * F + feature, change, mask=matters, sem="relaxed")


@triton.jit(do_not_specialize=["number"])
def position_gradient_kernel(
    positions: ty.Pointer,
    table: ty.Pointer,
    cotangent: ty.Pointer,
    scales: ty.Pointer,
    geometry: ty.Pointer,
    gradient: ty.Pointer,
    number: ty.Scalar,
    num_levels: ty.Scalar,
    F: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Gradient of a block of positions over all levels, float32 [N, 3]."""
    point, valid, feature, mask = _block(number, F, WIDTH, BLOCK)
    gx = tl.zeros([BLOCK], tl.float32)
    gy = tl.zeros([BLOCK], tl.float32)
    gz = tl.zeros([BLOCK], tl.float32)
    for level_index in range(num_levels):
        scale = tl.load(scales + level_index)
        cell, fraction = _load_cells(positions, point, valid, scale)
        level = _load_level(geometry, level_index)
        at = cotangent + point[:, None] * (num_levels * F) + level_index * F + feature
        incoming = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        for corner in tl.static_range(8):
            row = _row(cell, level, corner)
            values = tl.load(table + row[:, None] * F + feature, mask=mask, other=0.0).to(tl.float32)
            change = scale * tl.sum(values * incoming, 1)
            x = share(fraction[0], corner & 1)
            y = share(fraction[1], corner >> 1 & 1)
            z = share(fraction[2], corner >> 2)
            gx += (2 * (corner & 1) - 1) * y * z * change
            gy += (2 * (corner >> 1 & 1) - 1) * x * z * change
            gz += (2 * (corner >> 2) - 1) * x * y * change
    tl.store(gradient + point * 3, gx, mask=valid)
    tl.store(gradient + point * 3 + 1, gy, mask=valid)
    tl.store(gradient + point * 3 + 2, gz, mask=valid)


# ---- launchers ----


@lru_cache(maxsize=8)
def _upload(
    scales: bytes, resolutions: bytes, offsets: bytes, dense: bytes, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scales float32 [L] and geometry int32 [L, 4] on a device, as `_load_level` reads it."""
    firsts = np.frombuffer(offsets, np.int64)
    columns = [firsts[:-1], np.diff(firsts), np.frombuffer(resolutions, np.int64), np.frombuffer(dense, np.bool_)]
    geometry = torch.from_numpy(np.stack(columns, 1).astype(np.int32))
    return torch.from_numpy(np.frombuffer(scales, np.float32).copy()).to(device), geometry.to(device)


def on_device(levels: GridLevels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scales and geometry of the levels on a device, as `_load_level` reads them."""
    # By content: uploading in each step would make the host wait.
    return _upload(
        levels.scales.tobytes(),
        levels.resolutions.tobytes(),
        levels.offsets.tobytes(),
        levels.dense.tobytes(),
        device,
    )


def _sizes(features: int) -> dict[str, int]:
    return {"F": features, "WIDTH": triton.next_power_of_2(features), "BLOCK": _BLOCK, "num_warps": _WARPS}


def forward(positions: Tensor, table: Tensor, levels: GridLevels) -> Tensor:
    """`reference.encode` for contiguous tensors.

    Args:
        positions: float32 [N, 3].
        table: float32 or float16 [levels.total_rows, F].
        levels: geometry of the L levels.

    Returns:
        [N, L F] in the table's type.
    """
    features = table.shape[1]
    out = table.new_empty(len(positions), levels.num_levels * features)
    if len(positions):
        grid = (triton.cdiv(len(positions), _BLOCK), levels.num_levels)
        geometry = on_device(levels, table.device)
        forward_kernel[grid](positions, table, *geometry, out, len(positions), levels.num_levels, **_sizes(features))
    return out


def table_gradient(positions: Tensor, cotangent: Tensor, levels: GridLevels) -> Tensor:
    """Gradient of sum(cotangent * encoding) with respect to the table.

    Args:
        positions: float32 [N, 3].
        cotangent: float32 or float16 [N, L F].
        levels: geometry of the L levels.

    Returns:
        float32 [levels.total_rows, F].
    """
    features = cotangent.shape[1] // levels.num_levels
    gradient = positions.new_zeros(levels.total_rows, features)
    if len(positions):
        grid = (triton.cdiv(len(positions), _BLOCK), levels.num_levels)
        geometry = on_device(levels, positions.device)
        table_gradient_kernel[grid](
            positions, cotangent, *geometry, gradient, len(positions), levels.num_levels, **_sizes(features)
        )
    return gradient


def position_gradient(positions: Tensor, table: Tensor, levels: GridLevels, cotangent: Tensor) -> Tensor:
    """Gradient of sum(cotangent * encoding) with respect to the positions.

    Args:
        positions: float32 [N, 3].
        table: float32 or float16 [levels.total_rows, F].
        levels: geometry of the L levels.
        cotangent: float32 or float16 [N, L F].

    Returns:
        float32 [N, 3].
    """
    gradient = torch.empty_like(positions)
    if len(positions):
        grid = (triton.cdiv(len(positions), _BLOCK),)
        geometry = on_device(levels, table.device)
        position_gradient_kernel[grid](
            positions,
            table,
            cotangent,
            *geometry,
            gradient,
            len(positions),
            levels.num_levels,
            **_sizes(table.shape[1]),
        )
    return gradient


# ---- autograd ----


class _Known(torch.autograd.Function):
    """The encoding of positions, known already: only its gradient is computed."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, positions: Tensor, table: Tensor, levels: GridLevels) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.levels = levels
        return features.view_as(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        return None, *_gradients(ctx, cotangent, *ctx.needs_input_grad[1:3]), None


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, levels: GridLevels) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.levels = levels
        return forward(positions, table, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return *_gradients(ctx, cotangent, *ctx.needs_input_grad[:2]), None


def _gradients(ctx: Any, cotangent: Tensor, of_positions: bool, of_table: bool) -> tuple[Tensor | None, Tensor | None]:
    positions, table = ctx.saved_tensors
    cotangent = cotangent.contiguous()
    positions_grad = table_grad = None
    if of_positions:
        positions_grad = position_gradient(positions, table, ctx.levels, cotangent)
    if of_table:
        table_grad = table_gradient(positions, cotangent, ctx.levels).to(table.dtype)
    return positions_grad, table_grad


def encode(positions: Tensor, table: Tensor, levels: GridLevels) -> Tensor:
    """`reference.encode` on a GPU, differentiable once; the table's gradient is dense.

    Args:
        positions: [N, 3], floating point, in [0, 1]; outside it the grid repeats.
        table: float32 or float16 [levels.total_rows, F], contiguous.
        levels: geometry of the L levels.

    Returns:
        [N, L F] in the table's type.
    """
    output: Tensor = _Encode.apply(positions.float().contiguous(), table, levels)
    return output


def resume(features: Tensor, positions: Tensor, table: Tensor, levels: GridLevels) -> Tensor:
    """The encoding as `encode` computes it, from features [N, L F] that an earlier pass has computed: no look-ups."""
    output: Tensor = _Known.apply(features, positions.float().contiguous(), table, levels)
    return output
