"""Compositing of projected splats in dense PyTorch, at any float precision; the kernel is tested against it.

Front to back, with opacity alpha_i of splat i in a pixel and T_i = prod_{j<i} (1 - alpha_j):

    rgb = sum_i T_i alpha_i c_i + (1 - sum_i T_i alpha_i) background,

over those splats for which T_i (1 - alpha_i) > 1e-4: one that would leave less is not drawn, nor is any behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raygauss_ns.splatting.projection import LEAST_ALPHA, LEAST_TRANSMITTANCE, MOST_ALPHA, Projected


def composite_reference(splats: Projected, size: tuple[int, int], background: Tensor) -> Tensor:
    """Composite n splats, each in every pixel: for small images.

    Args:
        splats: from near to far.
        size: columns, rows.
        background: [3].

    Returns:
        [rows, columns, 3], differentiable in all but the extents.
    """
    columns, rows = size
    like = splats.centers
    column = (torch.arange(columns, device=like.device) + 0.5).to(like).repeat(rows)[:, None]
    row = (torch.arange(rows, device=like.device) + 0.5).to(like).repeat_interleave(columns)[:, None]
    dx, dy = column - splats.centers[:, 0], row - splats.centers[:, 1]
    xx, xy, yy = splats.conics.unbind(-1)
    alphas = splats.opacities * torch.exp(-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy)
    alphas = torch.where(alphas < LEAST_ALPHA, 0.0, alphas).clamp_max(MOST_ALPHA)
    after = torch.cumprod(1 - alphas, -1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], -1)
    weights = torch.where(after > LEAST_TRANSMITTANCE, before * alphas, 0.0)
    rgb = weights @ splats.colors + (1 - weights.sum(-1, keepdim=True)) * background
    return rgb.view(rows, columns, 3)
