"""`RowAdam` on a GPU: one Triton kernel for a parameter, which reads no more of a row without a gradient than that.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from ns_support.kernels import triton_types as ty

_VALUES = 1024
"""Values that a program updates."""
WIDEST_ROW = 1024
"""Numbers of a row; a program holds whole rows."""


@triton.jit(do_not_specialize=["rows", "lr", "beta1", "rest1", "beta2", "rest2", "eps", "step", "last"])
def row_adam_kernel(
    values: ty.Pointer,
    gradient: ty.Pointer,
    first: ty.Pointer,
    second: ty.Pointer,
    row_steps: ty.Pointer,
    corrections: ty.Pointer,
    rows: ty.Scalar,
    lr: ty.Scalar,
    beta1: ty.Scalar,
    rest1: ty.Scalar,
    beta2: ty.Scalar,
    rest2: ty.Scalar,
    eps: ty.Scalar,
    step: ty.Scalar,
    last: ty.Scalar,
    F: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROW_STEPS: tl.constexpr,
) -> None:
    """Update the rows of a block that have a non-zero gradient; `hash_encoding.optimizer` defines the result.

    `corrections` holds 1 / (1 - beta1^n) for n = 0 ... last, then 1 / sqrt(1 - beta2^n).
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, WIDTH)
    place = row[:, None] * F + column[None]
    g = tl.load(gradient + place, mask=(row < rows)[:, None] & (column < F)[None], other=0.0)
    touched = tl.max((g != 0.0).to(tl.int32), 1) > 0
    count = tl.zeros([BLOCK], tl.int32) + step
    if ROW_STEPS:
        steps = tl.load(row_steps + row, mask=touched, other=0.0) + 1.0
        tl.store(row_steps + row, steps, mask=touched)
        count = steps.to(tl.int32)
    count = tl.minimum(count, last)
    rate = lr * tl.load(corrections + count, mask=touched, other=0.0)
    root = tl.load(corrections + last + 1 + count, mask=touched, other=0.0)
    mask = touched[:, None] & (column < F)[None]
    m = beta1 * tl.load(first + place, mask=mask, other=0.0) + rest1 * g
    v = beta2 * tl.load(second + place, mask=mask, other=0.0) + rest2 * (g * g)
    tl.store(first + place, m, mask=mask)
    tl.store(second + place, v, mask=mask)
    old = tl.load(values + place, mask=mask, other=0.0)
    new = old - rate[:, None] * m / (tl.sqrt(v) * root[:, None] + eps)
    tl.store(values + place, new, mask=mask)


def update(
    param: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
    corrections: tuple[NDArray[Any], NDArray[Any]],
) -> None:
    """One step of `RowAdam` for a parameter on a GPU, in place.

    Args:
        param: [rows, ...] float32, contiguous, with at most `WIDEST_ROW` numbers in a row.
        gradient: of the same shape.
        state: "exp_avg", "exp_avg_sq", "step" on the host and perhaps "row_steps" [rows].
        group: the optimiser's settings.
        corrections: 1 / (1 - beta1^n) and 1 / sqrt(1 - beta2^n) for n = 0, 1, ... until both are 1.
    """
    rows, width = (len(param), param.shape[1:].numel()) if param.ndim else (1, 1)
    if rows * width == 0:
        return
    tables = _on_device(corrections[0].tobytes(), corrections[1].tobytes(), param.device)
    padded = triton.next_power_of_2(width)
    block = max(_VALUES // padded, 1)
    beta1, beta2 = group["betas"]
    row_adam_kernel[(triton.cdiv(rows, block),)](
        param.detach(),
        gradient,
        state["exp_avg"],
        state["exp_avg_sq"],
        state.get("row_steps", tables),
        tables,
        rows,
        *(float(number) for number in (group["lr"], beta1, 1 - beta1, beta2, 1 - beta2, group["eps"])),
        int(state["step"]),
        len(corrections[0]) - 1,
        F=width,
        WIDTH=padded,
        BLOCK=block,
        ROW_STEPS="row_steps" in state,
        num_warps=4,
    )
    torch.autograd.graph.increment_version(param)


@lru_cache(maxsize=8)
def _on_device(first: bytes, second: bytes, device: torch.device) -> Tensor:
    return torch.from_numpy(np.frombuffer(first + second, np.float32).copy()).to(device)
