"""The hash encoding in plain PyTorch, on any device and in any float type: the definition the kernels must meet."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hardmine_ns.hash_encoding.levels import CELL_LIMIT, PRIME_Y, PRIME_Z, GridLevels

_UINT32 = 0xFFFFFFFF


@lru_cache(maxsize=1)
def _corners(device: torch.device) -> Tensor:
    """The 8 corners of a unit cell, int64 [8, 3], x fastest."""
    return torch.tensor([[c & 1, c >> 1 & 1, c >> 2] for c in range(8)], device=device)


def table_rows(cells: Tensor, levels: GridLevels) -> Tensor:
    """Row in the table of each grid vertex.

    Args:
        cells: int64 [N, L, C, 3], integer vertices; any value, read as 32-bit unsigned.
        levels: geometry of the L levels.

    Returns:
        int64 [N, L, C], each within its own level's rows.
    """
    device = cells.device
    resolutions = torch.from_numpy(levels.resolutions).to(device)[:, None]
    sizes = torch.from_numpy(levels.sizes).to(device)[:, None]
    offsets = torch.from_numpy(levels.offsets[:-1]).to(device)[:, None]
    dense = torch.from_numpy(levels.dense).to(device)[:, None]
    x, y, z = (cells & _UINT32).unbind(-1)
    # int64 products may overflow; that leaves their low 32 bits, the only ones used, intact.
    hashed = x ^ (y * PRIME_Y & _UINT32) ^ (z * PRIME_Z & _UINT32)
    linear = (x + y * resolutions + z * (resolutions * resolutions)) & _UINT32
    return torch.where(dense, linear, hashed) % sizes + offsets


def encode(positions: Tensor, table: Tensor, levels: GridLevels) -> Tensor:
    """Trilinear interpolation of each level's features (instant-ngp, section 3).

    Differentiable with respect to both tensors; the table's gradient is dense.

    Args:
        positions: [N, 3], the table's float type, in [0, 1]; outside it the grid repeats.
        table: [levels.total_rows, F].
        levels: geometry of the L levels.

    Returns:
        [N, L F], features of the coarsest level first.
    """
    scales = torch.from_numpy(levels.scales).to(positions.device, torch.float64)[:, None]
    # One rounding, as in the kernels' fused multiply-add: two would move points across the borders of fine cells.
    scaled = (positions[:, None, :].double() * scales + 0.5).to(positions.dtype)
    floors = scaled.detach().floor()
    fractions = scaled - floors
    cells = floors.clamp(-CELL_LIMIT, CELL_LIMIT).nan_to_num(nan=-CELL_LIMIT).long()

    corners = _corners(positions.device)
    rows = table_rows(cells[:, :, None, :] + corners, levels)
    weights = torch.where(corners.bool(), fractions[:, :, None, :], 1 - fractions[:, :, None, :]).prod(-1)
    features = table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])
    return (weights[..., None] * features).sum(2).flatten(1)
