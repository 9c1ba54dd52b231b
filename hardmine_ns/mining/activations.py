"""Hardness before the activations, for fields that apply them themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

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
