"""Regularization losses, in PyTorch only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FREE_RATIO = 10.0
"""Elongation r up to which a Gaussian is not penalised."""


def isotropy_loss(log_scales: Tensor) -> Tensor:
    """L_iso = mean(max(r, 10) - 10) of RayGaussX, r = 2 / (pi sqrt 3) (sum s^2)^(3/2) / (s1 s2 s3).

    r is 1.91 for a sphere, and 10 for a needle 4.9 times as long as it is wide or a disc 9.5 times as wide as it is
    thick. It does not depend on the size. Computed in logarithms, so that products of small scales do not underflow.

    Args:
        log_scales: [N, 3] log s.

    Returns:
        A scalar; 0 if there is no Gaussian.
    """
    if len(log_scales) == 0:
        return log_scales.sum()
    log_ratio = 1.5 * torch.logsumexp(2.0 * log_scales, dim=-1) - log_scales.sum(-1) + math.log(2 / (math.pi * 3**0.5))
    # Clamped where e^x would overflow: the gradient of such a thin Gaussian is 0 instead of NaN.
    return (log_ratio.clamp_max(60.0).exp() - FREE_RATIO).clamp_min(0.0).mean()
