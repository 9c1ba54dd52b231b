"""How hard rows are: the norm of the loss's gradient with respect to a row's outputs, before their activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardmine_ns.mining.selection import ALONE
from ns_support.concurrency.processes import Processes

Activation = Literal["exp", "sigmoid", "softplus", "relu", "none"]
BeforeActivation = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
"""Maps (outputs, their gradients) to the gradients before the activations."""
_DERIVATIVE_FROM_OUTPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda y: y,
    "sigmoid": lambda y: y * (1 - y),
    "softplus": lambda y: -torch.expm1(-y),
    "relu": lambda y: (y > 0).to(y.dtype),
    "none": torch.ones_like,
}


def undo_activations(*activations: Activation) -> BeforeActivation:
    """Hardness before the activations, for a field that applies them itself.

    Args:
        activations: one name for each output of the field, in its order.

    Returns:
        The function that multiplies each gradient by its activation's derivative, taken from the output alone:
        exp: y; sigmoid: y (1 - y); softplus: 1 - exp(-y); relu: y > 0; none: 1.

    Raises:
        ValueError: for an unknown name, or, when called, for a number of outputs other than the number of names.
    """
    for name in activations:
        if name not in _DERIVATIVE_FROM_OUTPUT:
            raise ValueError(f"activation must be one of {sorted(_DERIVATIVE_FROM_OUTPUT)}, got {name!r}")

    def convert(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        if len(outputs) != len(activations):
            raise ValueError(f"{len(activations)} activations were named for a field with {len(outputs)} outputs")
        return [
            gradient * _DERIVATIVE_FROM_OUTPUT[name](output)
            for name, output, gradient in zip(activations, outputs, gradients, strict=True)
        ]

    return convert


class Hardness(NamedTuple):
    """How hard rows are.

    Attributes:
        values: [B] g, up to a factor that all rows share; meaningless unless it is finite and not zero.
        finite: whether all gradients are.
        zero: whether all gradients are 0.
    """

    values: Tensor
    finite: bool
    zero: bool


def flattened(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients [B, ...] as [B, n], in single precision at least; empty ones are left out."""
    flat = [g.reshape(g.shape[0], -1) for g in gradients if g.numel()]
    return [g.to(torch.promote_types(g.dtype, torch.float32)) for g in flat]


def of_heads(gradients: Sequence[Tensor], processes: Processes = ALONE) -> Tensor:
    """Each output's own || dL/dy_h,i ||_2, over the largest entry of that output's gradient.

    Args:
        gradients: of each of H outputs, [B, ...], before the activations.
        processes: whose rows, all together, the largest entries are of; each calls this with its own.

    Returns:
        [H, B], in single precision at least; 0 for outputs without a gradient. Nothing asks the host.
    """
    dtype = reduce(torch.promote_types, [g.dtype for g in gradients], torch.float32)
    flat = [(g[:, None] if g.dim() == 1 else g.flatten(1)).to(dtype) for g in gradients]
    peaks = [g.abs().amax() if g.numel() else g.new_zeros(()) for g in flat]
    peak = processes.gather(torch.stack(peaks)[None]).amax(0)
    peak = torch.where(peak > 0, peak, 1.0)
    return torch.stack([(g / largest).square().sum(-1).sqrt() for g, largest in zip(flat, peak, strict=True)])


def hardness(gradients: Sequence[Tensor], processes: Processes = ALONE) -> Hardness:
    """g_i = || dL/dy_i ||_2 over all outputs, over the largest entry of any.

    So divided, squares neither overflow nor vanish, whatever the loss scale is.

    Args:
        gradients: of each output, [B, ...], before the activations.
        processes: whose rows, all together, the largest entry is of; each calls this with its own.
    """
    flat = flattened(gradients)
    # Of no rows: a process without any still has its part in the sums.
    dtype = reduce(torch.promote_types, [g.dtype for g in gradients], torch.float32)
    nothing = gradients[0].new_zeros(0, dtype=dtype)
    peaks = torch.stack([g.abs().amax().to(torch.float64) for g in flat]) if flat else nothing.new_zeros(1).double()
    peak = processes.gather(peaks.amax()[None]).amax()
    finite, zero = bool(torch.isfinite(peak)), bool(peak == 0)
    if not finite or zero or not flat:
        return Hardness(nothing, finite, zero)
    squares = [(g / peak.to(g.dtype)).square().sum(-1) for g in flat]
    return Hardness(torch.stack(squares).sum(0).sqrt(), finite, zero)


def told(outputs: Sequence[Tensor], tell: Callable[[Tensor], None]) -> tuple[Tensor, ...]:
    """The same outputs, whose hardness is told as soon as a backward pass knows it, mined or not.

    Args:
        outputs: of a field, [B, ...], before the activations.
        tell: gets g [B], with any loss scale; not called if nothing is backpropagated.
    """
    passed: tuple[Tensor, ...] = _Told.apply(tell, *outputs)
    return passed


class _Told(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tell: Callable[[Tensor], None], *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.tell = tell
        return tuple(y.view_as(y) for y in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        squares = [g.square().sum(-1) for g in flattened(gradients)]
        ctx.tell(torch.stack(squares).sum(0).sqrt() if squares else gradients[0].new_zeros(0))
        return None, *gradients
