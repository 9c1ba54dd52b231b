"""Several optimisers, one for each kind of parameter, that step together on a GPU.

Each kind of parameter has an optimiser of its own because its learning rate has a schedule of its own. `torch` launches
two kernels for each of them; here they wait for one another, and two kernels update all parameters (`adam.gpu`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ns_support.kernels.backend import triton_module


class SharedAdam(torch.optim.Adam):
    """`torch.optim.Adam`, and exactly that outside of `stepping_together`, on a CPU, and in its first step.

    Its state has the same form whatever updates it: the number of steps and both moments, on the parameter's device.
    """

    waiting: list[SharedAdam] | None = None
    """Where a step is left to `stepping_together`; None outside of it."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient, at once or at the end of `stepping_together`."""
        if self.waiting is None or closure is not None or not self._can_wait():
            return _adam_step()(self, closure)
        self.waiting.append(self)
        return None

    def _can_wait(self) -> bool:
        return all(
            not (group["weight_decay"] or group["amsgrad"] or group["maximize"] or isinstance(group["lr"], Tensor))
            and all(_is_plain(parameter, self.state.get(parameter)) for parameter in _with_gradient(group))
            for group in self.param_groups
        )


def _adam_step() -> Callable[..., Any]:
    """`torch.optim.Adam.step` without the hooks around it, which are around `SharedAdam.step` already.

    `torch` wraps the method of a class when its first optimiser is made: whether it is wrapped depends on the process.
    """
    step: Any = torch.optim.Adam.step
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def _with_gradient(group: dict[str, Any]) -> list[Tensor]:
    return [parameter for parameter in group["params"] if parameter.grad is not None]


def _is_plain(parameter: Tensor, state: dict[str, Tensor] | None) -> bool:
    """Whether all that belongs to a parameter is contiguous, float32 and on a GPU; not before its first step."""
    if not state:
        return False
    tensors = (parameter, parameter.grad, state["step"], state["exp_avg"], state["exp_avg_sq"])
    return all(
        tensor is not None and tensor.is_cuda and tensor.dtype == torch.float32 and tensor.is_contiguous()
        for tensor in tensors
    )


@contextmanager
def stepping_together(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
    """Optimisers that are `SharedAdam` on a GPU only note in here that they should step; at its end, all of them do.

    Args:
        optimizers: of any kind; the others step at once.
    """
    ours = [optimizer for optimizer in optimizers if isinstance(optimizer, SharedAdam)]
    waiting: list[SharedAdam] = []
    for optimizer in ours:
        optimizer.waiting = waiting
    try:
        yield
    finally:
        for optimizer in ours:
            optimizer.waiting = None
    groups = [group for optimizer in waiting for group in optimizer.param_groups]
    states = {parameter: state for optimizer in waiting for parameter, state in optimizer.state.items()}
    entries = [(parameter, states[parameter], group) for group in groups for parameter in _with_gradient(group)]
    if entries:
        triton_module("ns_support.adam.gpu", "Adam on a GPU").update(entries)
