"""What a training step finds out about its rays, and the weights of their losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RayFindings(NamedTuple):
    """What a training step found out about its rays.

    Attributes:
        pixels: [R, 3] int64: image, row, column.
        errors: [R] mean squared error of the colour.
        samples: [R] int64, samples that were marched.
    """

    pixels: Tensor
    errors: Tensor
    samples: Tensor


def weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Losses [R, C] times the weights [R] of their rays; None: all are 1."""
    return losses if weights is None else losses * weights.to(losses)[:, None]
