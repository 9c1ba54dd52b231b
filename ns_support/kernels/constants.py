"""Numbers that stay on a GPU: writing one anew is a launch, and copying it there makes the host wait."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def constant(value: float, device: torch.device) -> Tensor:
    """A scalar, float32, the same tensor for each call: not to be written to.

    Args:
        value: of the scalar.
        device: where it is.
    """
    with torch.inference_mode(False):  # else it could not be used in training
        return torch.full((), value, device=device)
