"""Adam that leaves untouched rows alone, as instant-ngp's optimiser does for its hash tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

import ns_support.kernels.compiling  # noqa: F401 - acts on import, before a kernel is declared
from ns_support.concurrency.threads import num_threads, run_on_threads
from ns_support.kernels.backend import triton_module

Array: TypeAlias = NDArray[Any]

# Below this, waking a thread costs more than its chunk of the work saves.
_ROWS_WORTH_A_THREAD = 4096
# The kernel is compiled for each width. Wider rows, those of a linear layer, are as fast in PyTorch.
_WIDEST_ROW, _WIDEST_ROW_ON_GPU = 8, 1024


class RowAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) on the rows (first dimension) that have a non-zero gradient.

    Every other row keeps its value and its moments, bit for bit: a feature that no point of this step looked up has
    learned nothing, and stale momentum must not move it. A step costs what it touches when gradients are sparse, as
    those of `HashEncoding` are on the CPU; dense gradients have the same effect. With every row touched in every
    step, this is torch.optim.Adam.

    Bias correction counts the steps of each row by itself, as tiny-cuda-nn does: with one count for all, the first
    twenty steps of a row that is reached late are up to twice as long as Adam means them to be.

    Args:
        params: parameters or parameter groups.
        lr: step length, the learning rate.
        betas: decay of the first and second moment; instant-ngp's values.
        eps: added to the root of the second moment; instant-ngp's value.
        row_steps: count steps per row; False counts them for the whole parameter, as torch.optim.SparseAdam does.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
        row_steps: bool = True,
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"lr must not be negative, got {lr}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        if not eps >= 0:
            raise ValueError(f"eps must not be negative, got {eps}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "row_steps": row_steps})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have a gradient.

        Args:
            closure: re-evaluates the loss, with gradients, before the update.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group)
        return loss

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.contiguous_format)
            if group["row_steps"]:
                # A float, so that `load_state_dict` moves it to the parameter's device; exact up to 2^24 steps.
                state["row_steps"] = torch.zeros(param.shape[:1], device=param.device)
        state["step"] += 1
        assert param.grad is not None
        rows, gradient = _rows_of(param.grad)
        whole = all(
            t.device == param.device and t.dtype == torch.float32 and t.is_contiguous()
            for t in (param, gradient, state["exp_avg"], state["exp_avg_sq"])
        )
        width = param.shape[1:].numel()
        if whole and param.is_cuda and rows is None and width <= _WIDEST_ROW_ON_GPU:
            gpu = triton_module("hardmine_ns.hash_encoding.gpu.adam", "RowAdam on a GPU")
            gpu.update(param, gradient, state, group, _bias_corrections(tuple(group["betas"])))
        elif whole and param.device.type == "cpu" and param.ndim and 0 < width <= _WIDEST_ROW:
            _update_on_cpu(param, rows, gradient, state, group)
        else:
            _update_with_torch(param, rows, gradient, state, group)


def _rows_of(grad: Tensor) -> tuple[Tensor | None, Tensor]:
    """The gradient's distinct rows, ascending (None: all of them), and their values."""
    if not grad.is_sparse:
        return None, grad.contiguous()
    if grad.sparse_dim() != 1:
        raise ValueError(f"a sparse gradient must be sparse in its rows alone, got sparse_dim={grad.sparse_dim()}")
    rows = grad._indices()[0]
    # Accumulating a gradient drops the mark that its rows are sorted and distinct, and restoring it means a sort.
    if not grad.is_coalesced() and not (rows.device.type == "cpu" and _ascend(rows.numpy())):
        grad = grad.coalesce()
        rows = grad._indices()[0]
    return rows, grad._values().contiguous()


@njit(nogil=True, cache=True)
def _ascend(rows: Array) -> bool:
    """Whether each row is greater than the one before."""
    ascend = True
    for k in range(1, len(rows)):
        ascend &= rows[k - 1] < rows[k]
    return ascend


@lru_cache(maxsize=8)
def _bias_corrections(betas: tuple[float, float]) -> tuple[Array, Array]:
    """1 / (1 - beta1^n) and 1 / sqrt(1 - beta2^n) for n = 0, 1, ... until both are 1 in float32. Entry 0 is unused."""
    slowest = max(*betas, 0.5)
    steps = np.arange(math.ceil(-26 * math.log(2) / math.log(slowest)) + 1, dtype=np.float64)
    steps[0] = 1
    first, second = 1 / (1 - betas[0] ** steps), 1 / np.sqrt(1 - betas[1] ** steps)
    return first.astype(np.float32), second.astype(np.float32)


# ---- the CPU ----


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _adam_rows(
    values: Array,
    rows: Array,
    gradient: Array,
    first: Array,
    second: Array,
    row_steps: Array,
    step: int,
    corrections: tuple[Array, Array],
    numbers: tuple[np.float32, ...],
    start: int,
    stop: int,
    width: tuple[int, ...],
) -> None:
    """Update from entries [start, stop) of the gradient. Empty `rows`: entry k is row k. Empty `row_steps`: `step`.

    `width` has an entry for each of a row's features: its length belongs to its type, so that loops over it unroll.
    """
    lr, beta1, rest1, beta2, rest2, eps = numbers
    last = len(corrections[0]) - 1
    for k in range(start, stop):
        zero = True
        for f in range(len(width)):
            zero &= gradient[k, f] == np.float32(0)
        if zero:
            continue
        r = np.uint64(rows[k]) if len(rows) else np.uint64(k)
        count = step
        if len(row_steps):
            row_steps[r] += np.float32(1)
            count = int(row_steps[r])
        count = min(count, last)
        rate, correction = lr * corrections[0][count], corrections[1][count]
        for f in range(len(width)):
            g = gradient[k, f]
            m = beta1 * first[r, f] + rest1 * g
            v = beta2 * second[r, f] + rest2 * (g * g)
            first[r, f], second[r, f] = m, v
            values[r, f] -= rate * m / (np.sqrt(v) * correction + eps)


def _update_on_cpu(
    param: Tensor, rows: Tensor | None, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
) -> None:
    def as_rows(tensor: Tensor) -> Array:
        return tensor.detach().view(len(tensor), tensor.shape[1:].numel()).numpy()

    entries = as_rows(gradient)
    width = (0,) * entries.shape[1]
    arrays = as_rows(param), rows.numpy() if rows is not None else np.empty(0, np.int64), entries
    moments = as_rows(state["exp_avg"]), as_rows(state["exp_avg_sq"])
    row_steps = state["row_steps"].numpy() if "row_steps" in state else np.empty(0, np.float32)
    beta1, beta2 = group["betas"]
    # The complements are rounded from float64: 1 - 0.99 in float32 is wrong by 1e-6 of itself.
    numbers = tuple(np.float32(x) for x in (group["lr"], beta1, 1 - beta1, beta2, 1 - beta2, group["eps"]))
    corrections = _bias_corrections((beta1, beta2))

    def worker(thread: int, threads: int) -> None:
        start, stop = len(entries) * thread // threads, len(entries) * (thread + 1) // threads
        _adam_rows(*arrays, *moments, row_steps, int(state["step"]), corrections, numbers, start, stop, width)

    run_on_threads(worker, max(1, min(num_threads(), len(entries) // _ROWS_WORTH_A_THREAD)))
    torch.autograd.graph.increment_version(param)


# ---- other devices and types ----


def _update_with_torch(
    param: Tensor, rows: Tensor | None, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
) -> None:
    def take(tensor: Tensor) -> Tensor:
        return tensor if rows is None else tensor[rows]

    def put(tensor: Tensor, values: Tensor) -> None:
        if rows is None:
            tensor.copy_(values)
        else:
            tensor[rows] = values

    # Selected by masks: an index of the touched rows would make the host wait for the device.
    touched = gradient != 0
    if gradient.ndim > 1:
        touched = touched.flatten(1).any(1)
    row_shape = [len(gradient), *[1] * (gradient.ndim - 1)] if gradient.ndim else []
    beta1, beta2 = group["betas"]
    if "row_steps" in state:
        steps = take(state["row_steps"]) + touched
        put(state["row_steps"], steps)
        count = steps.double().view(row_shape)
    else:
        count = state["step"].to(param.device, torch.float64)
    touched = touched.view(row_shape)

    old_first, old_second, values = take(state["exp_avg"]), take(state["exp_avg_sq"]), take(param)
    first = old_first.lerp(gradient, 1 - beta1)
    second = (old_second * beta2).addcmul(gradient, gradient, value=1 - beta2)
    rate = (group["lr"] / (1 - beta1**count)).to(param.dtype)
    root = second.sqrt() / (1 - beta2**count).sqrt().to(param.dtype)
    put(state["exp_avg"], torch.where(touched, first, old_first))
    put(state["exp_avg_sq"], torch.where(touched, second, old_second))
    put(param, torch.where(touched, values - rate * first / (root + group["eps"]), values))
