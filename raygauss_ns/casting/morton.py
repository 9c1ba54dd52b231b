"""Morton codes (Z-order): sorting points by them keeps most neighbours in space together.

The code of a point is its cell on a grid over the points' bounding box, with the bits of the three coordinates
interleaved: bit b of axis i becomes bit 3 b + i. `gpu.hierarchy` and `raygauss_ns.gaussians.maintenance` sort by these
codes; `cpu.bvh` computes the same numbers in a Numba loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_BITS = 21
"""Bits per axis, at most: three times as many fill the 63 bits of a non-negative int64."""


def interleave(cells: Tensor) -> Tensor:
    """Interleave the bits of three coordinates.

    Args:
        cells: [*, 3] int64 in [0, 2^21).

    Returns:
        [*] int64: bit b of axis i is bit 3 b + i.

    Example:
        >>> interleave(torch.tensor([[1, 0, 0], [0, 1, 0], [2, 0, 1]])).tolist()
        [1, 2, 12]
    """
    for shift, mask in (
        (32, 0x001F00000000FFFF),
        (16, 0x001F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        cells = (cells | (cells << shift)) & mask
    return cells[..., 0] | (cells[..., 1] << 1) | (cells[..., 2] << 2)


@torch.no_grad()
def morton_codes(points: Tensor, bits: int = MAX_BITS, counted: Tensor | None = None) -> Tensor:
    """Morton codes on the points' own bounding box. Never synchronizes with the device.

    Args:
        points: [N, 3], floating point.
        bits: per axis, in [1, 21]: 10 give 30-bit codes, which fit an int32; 21 give 63-bit codes.
        counted: [N] bool, the points that define the box and get a code in it; None: all finite points.

    Returns:
        [N] int64 in [0, 2^(3 bits)). The other points get 2^(3 bits), or 2^63 - 1 if that is less, so that they are
        sorted last. A side of length 0 has one cell.

    Raises:
        ValueError: `points` is no list of points in space, or `bits` is out of range.
    """
    if points.ndim != 2 or points.shape[1] != 3 or not points.is_floating_point():
        raise ValueError(f"points must be [N, 3] and floating point, got {list(points.shape)} of {points.dtype}")
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be in [1, {MAX_BITS}], got {bits}")
    if len(points) == 0:
        return torch.empty(0, dtype=torch.int64, device=points.device)
    if counted is None:
        counted = points.isfinite().all(-1)
    inside, largest = counted[:, None], (1 << bits) - 1
    lower = torch.where(inside, points, torch.inf).amin(0)
    upper = torch.where(inside, points, -torch.inf).amax(0)
    cells = torch.where(inside, (points - lower) / (upper - lower) * largest, 0)
    codes = interleave(cells.nan_to_num(0).clamp(0, largest).long())
    return torch.where(counted, codes, min(1 << (3 * bits), (1 << 63) - 1))
