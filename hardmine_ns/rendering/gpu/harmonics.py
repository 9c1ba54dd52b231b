"""Spherical harmonics of degree 0 to 3 on a GPU: one Triton kernel each way; `field.spherical_harmonics` defines them.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ns_support.kernels import triton_types as ty
from ns_support.kernels.harmonics import Y0, Y1, Y2, Y3

_BLOCK = 128
_FACTORS = (Y0, Y1, *Y2, *Y3)


@triton.jit(do_not_specialize=["rows"])
def harmonics_kernel(
    directions: ty.Pointer,
    out: ty.Pointer,
    rows: ty.Scalar,
    A: tl.constexpr,
    B: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    D3: tl.constexpr,
    D4: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Harmonics [rows, 16] of directions [rows, 3]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = row < rows
    x = tl.load(directions + row * 3, mask=exists, other=0.0)
    y = tl.load(directions + row * 3 + 1, mask=exists, other=0.0)
    z = tl.load(directions + row * 3 + 2, mask=exists, other=0.0)
    xx = x * x
    yy = y * y
    zz = z * z
    at = out + row * 16
    tl.store(at, x * 0.0 + A, mask=exists)
    tl.store(at + 1, -B * y, mask=exists)
    tl.store(at + 2, B * z, mask=exists)
    tl.store(at + 3, -B * x, mask=exists)
    tl.store(at + 4, C0 * x * y, mask=exists)
    tl.store(at + 5, -C0 * y * z, mask=exists)
    tl.store(at + 6, C1 * (3 * zz - 1), mask=exists)
    tl.store(at + 7, -C0 * x * z, mask=exists)
    tl.store(at + 8, C2 * (xx - yy), mask=exists)
    tl.store(at + 9, -D0 * y * (3 * xx - yy), mask=exists)
    tl.store(at + 10, D1 * x * y * z, mask=exists)
    tl.store(at + 11, -D2 * y * (5 * zz - 1), mask=exists)
    tl.store(at + 12, D3 * z * (5 * zz - 3), mask=exists)
    tl.store(at + 13, -D2 * x * (5 * zz - 1), mask=exists)
    tl.store(at + 14, D4 * z * (xx - yy), mask=exists)
    tl.store(at + 15, -D0 * x * (xx - 3 * yy), mask=exists)


@triton.jit(do_not_specialize=["rows"])
def harmonics_gradient_kernel(
    directions: ty.Pointer,
    gradient: ty.Pointer,
    out: ty.Pointer,
    rows: ty.Scalar,
    A: tl.constexpr,
    B: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    D3: tl.constexpr,
    D4: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The gradient [rows, 3] of directions, for one [rows, 16] of their harmonics."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = row < rows
    x = tl.load(directions + row * 3, mask=exists, other=0.0)
    y = tl.load(directions + row * 3 + 1, mask=exists, other=0.0)
    z = tl.load(directions + row * 3 + 2, mask=exists, other=0.0)
    xx = x * x
    yy = y * y
    zz = z * z
    at = gradient + row * 16
    g1 = tl.load(at + 1, mask=exists, other=0.0)
    g2 = tl.load(at + 2, mask=exists, other=0.0)
    g3 = tl.load(at + 3, mask=exists, other=0.0)
    of_y = -B * g1
    of_z = B * g2
    of_x = -B * g3
    g = C0 * tl.load(at + 4, mask=exists, other=0.0)
    of_x += g * y
    of_y += g * x
    g = -C0 * tl.load(at + 5, mask=exists, other=0.0)
    of_y += g * z
    of_z += g * y
    of_z += 6 * C1 * z * tl.load(at + 6, mask=exists, other=0.0)
    g = -C0 * tl.load(at + 7, mask=exists, other=0.0)
    of_x += g * z
    of_z += g * x
    g = 2 * C2 * tl.load(at + 8, mask=exists, other=0.0)
    of_x += g * x
    of_y -= g * y
    g = -D0 * tl.load(at + 9, mask=exists, other=0.0)
    of_x += g * 6 * x * y
    of_y += g * 3 * (xx - yy)
    g = D1 * tl.load(at + 10, mask=exists, other=0.0)
    of_x += g * y * z
    of_y += g * x * z
    of_z += g * x * y
    g = -D2 * tl.load(at + 11, mask=exists, other=0.0)
    of_y += g * (5 * zz - 1)
    of_z += g * 10 * y * z
    of_z += D3 * (15 * zz - 3) * tl.load(at + 12, mask=exists, other=0.0)
    g = -D2 * tl.load(at + 13, mask=exists, other=0.0)
    of_x += g * (5 * zz - 1)
    of_z += g * 10 * x * z
    g = D4 * tl.load(at + 14, mask=exists, other=0.0)
    of_x += g * 2 * x * z
    of_y -= g * 2 * y * z
    of_z += g * (xx - yy)
    g = -D0 * tl.load(at + 15, mask=exists, other=0.0)
    of_x += g * 3 * (xx - yy)
    of_y -= g * 6 * x * y
    tl.store(out + row * 3, of_x, mask=exists)
    tl.store(out + row * 3 + 1, of_y, mask=exists)
    tl.store(out + row * 3 + 2, of_z, mask=exists)


def _launch(kernel: Any, *tensors: Tensor) -> None:
    rows = len(tensors[0])
    if rows:
        kernel[(triton.cdiv(rows, _BLOCK),)](*tensors, rows, *_FACTORS, BLOCK=_BLOCK, num_warps=4)


class _Harmonics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, directions: Tensor) -> Tensor:
        out = directions.new_empty(len(directions), 16)
        _launch(harmonics_kernel, directions, out)
        ctx.save_for_backward(directions)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (directions,) = ctx.saved_tensors
        out = torch.empty_like(directions)
        _launch(harmonics_gradient_kernel, directions, gradient.contiguous(), out)
        return out


def spherical_harmonics(directions: Tensor) -> Tensor:
    """See `field.spherical_harmonics`; for float32 [n, 3]."""
    found: Tensor = _Harmonics.apply(directions.contiguous())
    return found
