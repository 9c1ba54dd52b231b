"""Adam (Kingma & Ba 2015) for any number of parameters on a GPU by two Triton kernels, one of which only counts steps.

With gradient g, moments m and v, and t steps,

    m <- beta1 m + (1 - beta1) g        v <- beta2 v + (1 - beta2) g^2
    x <- x - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

The kernels find the parameters by a table of their addresses and settings, which is copied to the GPU for each step.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ns_support.kernels import triton_types as ty

_BLOCK, _WARPS = 1024, 4
_NEVER = 1 << 62
"""First block of a column of the table that is not used."""


@triton.jit
def _number(at: ty.Pointer, mask: ty.Lanes) -> ty.Lanes:
    """A float64 of the table."""
    return tl.load(at, mask=mask, other=0).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["number"])
def steps_kernel(table: ty.Pointer, rates: ty.Pointer, number: ty.Scalar, WIDTH: tl.constexpr) -> None:
    """Count a step for each parameter; rates [2, WIDTH] become lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t)."""
    column = tl.arange(0, WIDTH)
    mine = column < number
    at = table + column
    steps_at = tl.load(at + 6 * WIDTH, mask=mine, other=0).to(tl.pointer_type(tl.float32))
    steps = tl.load(steps_at, mask=mine, other=0.0) + 1.0
    tl.store(steps_at, steps, mask=mine)
    # In float64: 1 - beta2^t begins at a thousandth.
    t = steps.to(tl.float64)
    first = 1.0 - tl.exp2(t * tl.log2(_number(at + 8 * WIDTH, mine)))
    second = 1.0 - tl.exp2(t * tl.log2(_number(at + 9 * WIDTH, mine)))
    tl.store(rates + column, (_number(at + 7 * WIDTH, mine) / first).to(tl.float32), mask=mine)
    tl.store(rates + WIDTH + column, (1.0 / tl.sqrt(second)).to(tl.float32), mask=mine)


@triton.jit
def adam_kernel(table: ty.Pointer, rates: ty.Pointer, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Update a block of one parameter."""
    program = tl.program_id(0)
    firsts = tl.load(table + tl.arange(0, WIDTH))
    column = tl.sum((firsts <= program).to(tl.int32), 0) - 1
    at = table + column
    i = (program - tl.load(at)) * BLOCK + tl.arange(0, BLOCK)
    mask = i < tl.load(at + WIDTH)
    values = tl.load(at + 2 * WIDTH).to(tl.pointer_type(tl.float32)) + i
    gradients = tl.load(at + 3 * WIDTH).to(tl.pointer_type(tl.float32)) + i
    firsts_at = tl.load(at + 4 * WIDTH).to(tl.pointer_type(tl.float32)) + i
    seconds_at = tl.load(at + 5 * WIDTH).to(tl.pointer_type(tl.float32)) + i
    rest1 = (1.0 - tl.load(at + 8 * WIDTH).to(tl.float64, bitcast=True)).to(tl.float32)
    rest2 = (1.0 - tl.load(at + 9 * WIDTH).to(tl.float64, bitcast=True)).to(tl.float32)
    eps = tl.load(at + 10 * WIDTH).to(tl.float64, bitcast=True).to(tl.float32)
    g = tl.load(gradients, mask=mask, other=0.0)
    m = tl.load(firsts_at, mask=mask, other=0.0)
    v = tl.load(seconds_at, mask=mask, other=0.0)
    m += rest1 * (g - m)
    v += rest2 * (g * g - v)
    tl.store(firsts_at, m, mask=mask)
    tl.store(seconds_at, v, mask=mask)
    x = tl.load(values, mask=mask, other=0.0)
    root = tl.load(rates + WIDTH + column)
    tl.store(values, x - tl.load(rates + column) * m / (tl.sqrt(v) * root + eps), mask=mask)


def update(entries: Sequence[tuple[Tensor, dict[str, Tensor], dict[str, Any]]]) -> None:
    """One step of Adam, in place.

    Args:
        entries: parameters with a gradient, their states ("step", "exp_avg", "exp_avg_sq") and the settings ("lr",
            "betas", "eps") of each; all contiguous, float32 and on one device.
    """
    width = max(triton.next_power_of_2(len(entries)), 16)
    device = entries[0][0].device
    sizes = [parameter.numel() for parameter, _, _ in entries]
    blocks = np.cumsum([0, *(triton.cdiv(size, _BLOCK) for size in sizes)])
    table = np.zeros((11, width), np.int64)
    table[0] = _NEVER
    for column, (parameter, state, group) in enumerate(entries):
        gradient = parameter.grad
        assert gradient is not None
        tensors = (parameter, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"])
        table[:2, column] = blocks[column], sizes[column]
        table[2:7, column] = [tensor.data_ptr() for tensor in tensors]
        table[7:, column] = np.array([group["lr"], *group["betas"], group["eps"]], np.float64).view(np.int64)
    on_device = torch.from_numpy(table)
    if device.type == "cuda":  # pinned: the host does not wait for the copy
        on_device = on_device.pin_memory().to(device, non_blocking=True)
    rates = torch.empty(2, width, device=device)
    steps_kernel[(1,)](on_device, rates, len(entries), WIDTH=width, num_warps=1)
    adam_kernel[(int(blocks[-1]),)](on_device, rates, WIDTH=width, BLOCK=_BLOCK, num_warps=_WARPS)
    for parameter, _, _ in entries:
        torch.autograd.graph.increment_version(parameter)
