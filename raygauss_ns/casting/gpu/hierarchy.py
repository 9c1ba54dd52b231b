"""A hierarchy of blocks over all Gaussians, built on the device without host syncs.

Records are sorted by Morton code. 32 consecutive ones form a block, 32 consecutive blocks a block of the level above,
and so on up to the fourth level. A block is stored as the bounding boxes of its 32 children, by coordinate, so that a
warp tests one child in each lane. The fourth level may have several blocks, which are all visited: one for each 2^20
Gaussians.

`building` builds it by kernels. This module defines the result, by operations of PyTorch on any device.

Without copies to the host, the number of Gaussians above the density cutoff is not known. So all N get a record. Culled
ones get the greatest code and an empty box: blocks that hold nothing else are empty too, and are never visited.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raygauss_ns.casting.morton import morton_codes

CHILDREN = 32
"""Children of a block: the lanes of a warp."""
LEVELS = 4
NOWHERE = 3e38
"""Lower corner of an empty box; its upper corner is the negative. Finite, so that products with it are not NaN."""


class GpuHierarchy(NamedTuple):
    """N Gaussians and the B blocks above them, as tensors on one device.

    Attributes:
        order: [N] int64, index of each record's Gaussian; culled ones come last.
        records: [N, 16] float32, in leaf order: mean, A, peak density, colour.
        squared_cutoff: [N] float32, squared cutoff radius k^2, slightly enlarged; -1 for a culled Gaussian.
        bounds: [6] float32, lower then upper corner of the box around all supports; all 3e38 if there are none.
        blocks: [B, 6, 32] float32, lower (3) and upper corners (3) of each block's children, lowest level first.
        sizes: blocks of each of the four levels.
    """

    order: Tensor
    records: Tensor
    squared_cutoff: Tensor
    bounds: Tensor
    blocks: Tensor
    sizes: tuple[int, ...]


@torch.no_grad()
def build_gpu_hierarchy(
    means: Tensor, whitenings: Tensor, densities: Tensor, colors: Tensor, density_threshold: float
) -> GpuHierarchy:
    """Build the hierarchy of N > 0 Gaussians, all tensors float32 on one device.

    Args:
        means: [N, 3] centres mu.
        whitenings: [N, 3, 3] A = diag(1/s) R^T.
        densities: [N] peak densities sigma (1/length).
        colors: [N, 3].
        density_threshold: density cutoff eps > 0, below which a Gaussian's density counts as zero (1/length).
    """
    lower, upper, squared_cutoff = _supports(means, whitenings, densities, colors, density_threshold)
    order = torch.argsort(morton_codes(means, 16, squared_cutoff >= 0), stable=True)
    records = torch.cat([means, whitenings.reshape(-1, 9), densities[:, None], colors], dim=1)
    # With negated upper corners, the union of boxes is a minimum of all six numbers.
    corners = torch.cat([lower, -upper], dim=1)[order]
    levels = []
    for _ in range(LEVELS):
        missing = -len(corners) % CHILDREN
        children = torch.nn.functional.pad(corners, (0, 0, 0, missing), value=NOWHERE).view(-1, CHILDREN, 6)
        levels.append(children.transpose(1, 2))
        corners = children.amin(1)
    blocks = torch.cat(levels)
    blocks[:, 3:] *= -1
    lowest, highest = corners.amin(0).view(2, 3)
    # Nothing alive: a point that no ray reaches.
    bounds = torch.cat([lowest, torch.where(lowest == NOWHERE, NOWHERE, -highest)])
    return GpuHierarchy(order, records[order], squared_cutoff[order], bounds, blocks, tuple(map(len, levels)))


def _supports(
    means: Tensor, whitenings: Tensor, densities: Tensor, colors: Tensor, density_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Bounding boxes [N, 3], [N, 3] and padded k^2 [N] of the supports; empty and -1 for culled Gaussians."""
    squared_radius = 2 * torch.log(densities / density_threshold)
    rows = whitenings / (whitenings * whitenings).sum(-1, keepdim=True)
    # Padded by more than float32's rounding error: a box never cuts what the exact test would keep.
    half = torch.sqrt(squared_radius[:, None] * (rows * rows).sum(1)) * (1 + 1e-4) + 1e-6 * (1 + means.abs())
    lower, upper = means - half, means + half
    alive = (densities > density_threshold) & (squared_radius > 0) & colors.sum(-1).isfinite()
    alive = alive & (lower + upper).isfinite().all(-1)  # infinite half extents sum to NaN
    alive = alive & densities.isfinite()
    squared_cutoff = torch.where(alive, squared_radius * (1 + 1e-5) + 1e-6, -1.0)
    return (
        torch.where(alive[:, None], lower, NOWHERE),
        torch.where(alive[:, None], upper, -NOWHERE),
        squared_cutoff,
    )
