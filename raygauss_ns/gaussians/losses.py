"""Training losses: the difference from the image, and the isotropy regularization of the Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ns_support.kernels.backend import triton_module
from raygauss_ns.ssim import mixed_difference

ISO_WEIGHT_SYNTHETIC, ISO_WEIGHT_REAL = 2.5e-7, 2.5e-4
"""RayGaussX's weights of `isotropy_loss` for synthetic and for real scenes."""
FREE_RATIO = 10.0
"""Elongation r up to which a Gaussian is not penalised."""


def photometric_loss(rgb: Tensor, image: Tensor, ssim_lambda: float, mask: Tensor | None = None) -> Tensor:
    """(1 - lambda) L1 + lambda (1 - SSIM), the mean over the pixels that a mask keeps.

    Args:
        rgb: [H, W, 3] the rendering, H and W at least 11.
        image: [H, W, 3] the ground truth, in [0, 1].
        ssim_lambda: weight lambda of the structural similarity, in [0, 1].
        mask: [H, W, 1], non-zero for pixels that count; None: all of them. If none counts, the loss is 0.

    Returns:
        A scalar, differentiable in `rgb`.
    """
    if mask is None:
        return mixed_difference(rgb, image, ssim_lambda)
    kept = mask.float().mean()
    kept = torch.where(kept > 0, kept, 1.0)
    # Masked pixels are equal in both, and add nothing to the means over the image.
    return mixed_difference(rgb * mask, image * mask, ssim_lambda) / kept


def isotropy_loss(log_scales: Tensor, weight: float = 1.0) -> Tensor:
    """A weight times L_iso = mean(max(r, 10) - 10) of RayGaussX, r = 2 / (pi sqrt 3) (sum s^2)^(3/2) / (s1 s2 s3).

    r is 1.91 for a sphere, and 10 for a needle 4.9 times as long as it is wide or a disc 9.5 times as wide as it is
    thick. It does not depend on the size. Computed in logarithms, so that products of small scales do not underflow.

    Args:
        log_scales: [N, 3] log s.
        weight: of the loss.

    Returns:
        A scalar; 0 if there is no Gaussian.
    """
    if len(log_scales) == 0:
        return log_scales.sum()
    if log_scales.is_cuda and log_scales.dtype == torch.float32:
        gpu = triton_module("raygauss_ns.gaussians.gpu", "the isotropy loss on a GPU")
        loss: Tensor = gpu.Isotropy.apply(log_scales, weight)
        return loss
    log_ratio = 1.5 * torch.logsumexp(2.0 * log_scales, dim=-1) - log_scales.sum(-1) + math.log(2 / (math.pi * 3**0.5))
    # Clamped where e^x would overflow: the gradient of such a thin Gaussian is 0 instead of NaN.
    return weight * (log_ratio.clamp_max(60.0).exp() - FREE_RATIO).clamp_min(0.0).mean()
