"""Intervals on rays, packed: those of ray 0, then those of ray 1, and so on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedSamples:
    """Intervals on rays, sorted by ray and along each ray."""

    t_starts: Tensor
    """[M] distance of each interval's start from its ray's origin, in units of the direction's length."""
    t_ends: Tensor
    """[M] its end."""
    ray_indices: Tensor
    """[M] int64, ascending."""
    offsets: Tensor
    """[R + 1] int64: ray r owns the samples offsets[r] to offsets[r + 1]."""
    t_middles: Tensor | None = None
    """[M] distance at which each interval is looked at; None: in its middle."""
    longest: int | None = None
    """Samples of the ray that has most, where the host knows it already."""

    def __len__(self) -> int:
        return self.t_starts.shape[0]

    @property
    def num_rays(self) -> int:
        """Number of rays R, with and without samples."""
        return self.offsets.shape[0] - 1

    @property
    def midpoints(self) -> Tensor:
        """[M] distance at which each interval is looked at."""
        return self.t_middles if self.t_middles is not None else (self.t_starts + self.t_ends) * 0.5

    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """`midpoints` in space, [M, 3], for the rays' origins [R, 3] and directions [R, 3]."""
        along = directions.index_select(0, self.ray_indices)
        return origins.index_select(0, self.ray_indices).addcmul_(along, self.midpoints[:, None])

    def select(self, rows: Tensor) -> PackedSamples:
        """Keep some samples.

        Args:
            rows: [n] int64, ascending indices of the samples to keep.
        """
        middles = None if self.t_middles is None else self.t_middles[rows]
        return pack(self.t_starts[rows], self.t_ends[rows], self.ray_indices[rows], self.num_rays, middles)


def pack(
    t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, num_rays: int, t_middles: Tensor | None = None
) -> PackedSamples:
    """Find which of the samples, sorted by ray, belong to each ray; shapes as in `PackedSamples`."""
    offsets = torch.searchsorted(ray_indices, torch.arange(num_rays + 1, device=ray_indices.device))
    return PackedSamples(t_starts, t_ends, ray_indices, offsets, t_middles)
