"""What training minimises: the difference from the photograph, and how far the Gaussians are from round."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raygauss_ns.ssim import structural_similarity

ISO_WEIGHT_SYNTHETIC, ISO_WEIGHT_REAL = 2.5e-7, 2.5e-4
"""RayGaussX's weights of `isotropy_loss` for synthetic and for real scenes."""
FREE_RATIO = 10.0
"""Elongation r up to which a Gaussian may stretch at no cost."""


def photometric_loss(rgb: Tensor, image: Tensor, ssim_lambda: float, mask: Tensor | None = None) -> Tensor:
    """(1 - lambda) L1 + lambda (1 - SSIM), the mean over the pixels that a mask keeps.

    Args:
        rgb: [H, W, 3] what was rendered, H and W at least 11.
        image: [H, W, 3] the photograph, in [0, 1].
        ssim_lambda: weight lambda of the structural similarity, in [0, 1].
        mask: [H, W, 1], non-zero where pixels count; None: everywhere. Without a pixel that counts the loss is 0.

    Returns:
        A scalar, differentiable in `rgb`.
    """
    kept = torch.ones((), device=image.device)
    if mask is not None:
        image, rgb = image * mask, rgb * mask
        kept = mask.float().mean()
        kept = torch.where(kept > 0, kept, 1.0)
    similarity = structural_similarity(rgb, image)
    # Masked pixels are alike, and add nothing to the means over the image.
    return ((1 - ssim_lambda) * (rgb - image).abs().mean() + ssim_lambda * (1 - similarity)) / kept


def isotropy_loss(log_scales: Tensor) -> Tensor:
    """L_iso = mean(max(r, 10) - 10) of RayGaussX, r = 2 / (pi sqrt 3) (sum s^2)^(3/2) / (s1 s2 s3).

    r is 1.91 for a sphere, 10 for a needle 4.9 times as long as it is wide or a disc 9.5 times as wide as it is thick,
    and knows no size. In logarithms, so that no product of small scales underflows.

    Args:
        log_scales: [N, 3] log s.

    Returns:
        A scalar; 0 for no Gaussian.
    """
    if len(log_scales) == 0:
        return log_scales.sum()
    log_ratio = 1.5 * torch.logsumexp(2.0 * log_scales, dim=-1) - log_scales.sum(-1) + math.log(2 / (math.pi * 3**0.5))
    # Clamped where e^x would overflow: the gradient of so thin a Gaussian is 0 instead of not a number.
    return (log_ratio.clamp_max(60.0).exp() - FREE_RATIO).clamp_min(0.0).mean()
