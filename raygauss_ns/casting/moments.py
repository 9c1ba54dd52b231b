"""The 13 sums per Gaussian that a backward kernel returns, and the gradients that follow from them.

With y = A (x - mu), f = sigma exp(-|y|^2 / 2) and w = dL/df summed over all samples:

    M0 = sum w f,  Y1 = sum w f (x - mu),  Y2 = sum w f (x - mu)(x - mu)^T
    dL/dmu = A^T A Y1,   dL/dA = -A Y2,   dL/dsigma = M0 / sigma,   dL/dc = sum over samples of P f g

with P from the kernels (`raygauss_ns.casting.cpu.march`) and g the loss's gradient with respect to the ray's colour.
"""

from __future__ import annotations

import torch
from torch import Tensor


def moments_to_gradients(
    moments: Tensor, whitenings: Tensor, densities: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of means, A, densities and colours from the 13 moments.

    Args:
        moments: [N, 13]: M0, Y1 (3), Y2 (xx, xy, xz, yy, yz, zz), colour (3).
        whitenings: [N, 3, 3] the matrices A.
        densities: [N] peak densities.

    Returns:
        [N, 3], [N, 3, 3], [N] and [N, 3]; zero for a Gaussian whose moments are zero, whatever its parameters.
    """
    m0, y1, y2, grad_colors = moments.split([1, 3, 6, 3], dim=-1)
    # By columns: a list as an index would be copied to a GPU, and the host would wait for that.
    xx, xy, xz, yy, yz, zz = y2.unbind(-1)
    second = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).view(-1, 3, 3)
    grad_means = torch.einsum("nji,nj->ni", whitenings, torch.einsum("nij,nj->ni", whitenings, y1))
    grad_whitenings = -whitenings @ second
    grad_densities = torch.where(m0[:, 0] != 0, m0[:, 0] / densities, 0.0)
    return grad_means, grad_whitenings, grad_densities, grad_colors
