"""Colour of a Gaussian as seen from a direction: spherical harmonics for what is broad, spherical Gaussians for shine.

    c(d) = 0.5 + sum_i k_i Y_i(d) + sum_j a_j exp(lambda_j (d . n_j - 1)),   lambda = softplus(raw),  n = v / |v|

Y are the real spherical harmonics up to degree 2 with the signs and constants of 3D Gaussian splatting (Kerbl et al.
2023), each lobe j has an amplitude a_j (3 channels), a sharpness lambda_j >= 0 and an axis n_j; no clamp. d is the unit
vector from the camera to the Gaussian, so that colour has a gradient with respect to the Gaussian's position.

`colors_reference` is the definition, in PyTorch at any float precision; `view_colors` is what training calls and takes
the Numba kernel of `color_kernel` where there is one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raygauss_ns.color.reference import ColorBasis, colors_reference


def view_colors(basis: ColorBasis, means: Tensor, center: Tensor, alive: Tensor | None = None) -> Tensor:
    """Colours of N Gaussians as seen from a point; differentiable in the basis and the means, not in the point.

    Args:
        basis: coefficients; all of them count.
        means: [N, 3] positions mu.
        center: [3] the camera's centre.
        alive: [N] bool, which Gaussians anyone will look at; None: all. The kernel gives the others the colour 0 and
            no gradient.

    Returns:
        [N, 3], not clamped.
    """
    if means.device.type == "cpu" and all(tensor.dtype == torch.float32 for tensor in (means, center, *basis)):
        # Numba takes a second to import: only who computes with it pays.
        from raygauss_ns.color.cpu import KernelColors

        rows = torch.arange(len(means)) if alive is None else alive.nonzero()[:, 0]
        return KernelColors.apply(means, *basis, center, rows)
    return colors_reference(basis, normalize(means - center, dim=-1))
