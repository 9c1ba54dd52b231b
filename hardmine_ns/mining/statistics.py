"""What a mined backward pass came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MiningStatistics:
    """What the latest backward pass did."""

    rows: int = 0
    """B: rows that the field was asked for."""
    selected: int = 0
    """Rows that went through the second run; b on average."""
    tau: float = 1.0
    """The running mean of sqrt(B sum p^2), at least 1."""
    finite: bool = True
    """False when a gradient was NaN or infinite, and all rows were therefore used."""

    @property
    def fraction(self) -> float:
        """The fraction b / B as it came out, in [0, 1]."""
        return self.selected / self.rows if self.rows else 0.0
