"""The geometry of a multi-resolution hash grid, in tiny-cuda-nn's conventions.

Notation, here and in the back ends: N points, L levels, F features per level. Level l is a grid of `resolution`
vertices along each axis. A point x in [0, 1]^3 sits at `scale x + 1/2` in units of its cells. The half staggers the
levels, so that their cell borders do not coincide. A level whose vertices fit the table is dense (row = x + y res +
z res^2), a finer one hashes them (row = x ^ PRIME_Y y ^ PRIME_Z z). Both are 32-bit unsigned and modulo the level's
rows: a dense level wraps around at its far border, as tiny-cuda-nn's does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRIME_Y = 2654435761
PRIME_Z = 805459861

CELL_LIMIT = 2.0**30
"""Cells are clamped to +-this before they become integers: a float beyond the integer's range has no defined cell."""

ROW_MULTIPLE = 8
"""tiny-cuda-nn rounds a level's rows up to a multiple of this, for aligned access."""


@dataclass(frozen=True)
class GridLevels:
    """One entry per level, coarse to fine.

    Attributes:
        scales: float32 [L], cells per unit length.
        resolutions: int64 [L], vertices along an axis.
        sizes: int64 [L], rows of the level in the table.
        offsets: int64 [L + 1], the level's first row in the table; the last entry is the table's length.
        dense: bool [L], whether every vertex has a row of its own.
    """

    scales: NDArray[np.float32]
    resolutions: NDArray[np.int64]
    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    dense: NDArray[np.bool_]

    @property
    def num_levels(self) -> int:
        """How many levels there are, L."""
        return len(self.scales)

    @property
    def total_rows(self) -> int:
        """Rows of the table that holds all levels."""
        return int(self.offsets[-1])


def growth_factor(num_levels: int, base_resolution: int, max_resolution: int) -> float:
    """Ratio of neighbouring resolutions: instant-ngp's equation 3, exp((ln max - ln base) / (L - 1))."""
    if num_levels == 1:
        return 1.0
    return math.exp((math.log(max_resolution) - math.log(base_resolution)) / (num_levels - 1))


def grid_levels(
    num_levels: int = 16, log2_hashmap_size: int = 19, base_resolution: int = 16, max_resolution: int = 2048
) -> GridLevels:
    """Lay out the levels of a grid: scale_l = base growth^l - 1, resolution_l = ceil(scale_l) + 1.

    The scale is computed in float32 through exp2, in tiny-cuda-nn's order: at a whole-numbered scale one rounding
    decides the resolution, and with it every row index of a dense level.

    Args:
        num_levels: L, at least 1.
        log2_hashmap_size: a level has at most 2^this rows; between 3 and 30.
        base_resolution: vertices along an axis of the coarsest level, at least 1.
        max_resolution: the same of the finest level, at least `base_resolution`.

    Returns:
        The levels' geometry.

    Raises:
        ValueError: an argument is outside the range above.
    """
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1, got {num_levels}")
    if not 3 <= log2_hashmap_size <= 30:
        raise ValueError(f"log2_hashmap_size must be between 3 and 30, got {log2_hashmap_size}")
    if not 1 <= base_resolution <= max_resolution:
        raise ValueError(
            "resolutions must satisfy 1 <= base_resolution <= max_resolution, "
            f"got base_resolution={base_resolution}, max_resolution={max_resolution}"
        )
    log2_growth = np.log2(np.float32(growth_factor(num_levels, base_resolution, max_resolution)))
    powers = np.exp2(np.arange(num_levels, dtype=np.float32) * log2_growth)
    scales = (powers * np.float32(base_resolution) - np.float32(1)).astype(np.float32)
    resolutions = np.ceil(scales).astype(np.int64) + 1
    padded = (resolutions**3 + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE
    sizes = np.minimum(padded, 1 << log2_hashmap_size)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return GridLevels(scales, resolutions, sizes, offsets, resolutions**3 <= sizes)
