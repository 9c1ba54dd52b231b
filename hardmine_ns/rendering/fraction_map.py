"""Where the hard samples are: the fraction of samples that mining chose, in each cell of the field's unit cube."""

from __future__ import annotations

import torch
from torch import Tensor

_MEMORY = 0.99
"""Factor on a cell's counts at each step: the map tells of the last hundred steps or so."""


class FractionMap:
    """Counts of samples seen and of samples chosen, from which training draws no conclusion: for display only.

    Not a module, so that checkpoints don't hold it.

    Args:
        resolution: cells along an edge of the cube, >= 1.
        device: where the counts lie.
    """

    def __init__(self, resolution: int = 64, device: torch.device | str = "cpu") -> None:
        if resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {resolution}")
        self.resolution = resolution
        self.seen = torch.zeros(resolution**3, device=device)
        self.chosen = torch.zeros(resolution**3, device=device)

    def add(self, unit_positions: Tensor, rows: Tensor | None) -> None:
        """Count a step's samples.

        Args:
            unit_positions: [B, 3] of all samples, in [0, 1].
            rows: [b] indices of the chosen ones; None for all.
        """
        cells = self._cells(unit_positions)
        for counts, new in ((self.seen, cells), (self.chosen, cells if rows is None else cells[rows])):
            counts.mul_(_MEMORY).index_add_(0, new, torch.ones_like(new, dtype=counts.dtype))

    def at(self, unit_positions: Tensor) -> Tensor:
        """Fraction [n], in [0, 1], of the samples around points [n, 3] that were chosen; 0 where none was seen."""
        cells = self._cells(unit_positions)
        return self.chosen[cells] / self.seen[cells].clamp(min=torch.finfo(self.seen.dtype).tiny)

    def _cells(self, unit_positions: Tensor) -> Tensor:
        r = self.resolution
        x, y, z = (unit_positions * r).clamp(0, r - 1).to(torch.int64).unbind(-1)
        return (x * r + y) * r + z
