"""Colour of a Gaussian by direction: spherical harmonics (SH) for diffuse, spherical Gaussians (SG) for specular parts.

    c(d) = 0.5 + sum_i k_i Y_i(d) + sum_j a_j exp(lambda_j (d . n_j - 1)),   lambda = softplus(raw),  n = v / |v|

Y are the real spherical harmonics up to degree 2 with the signs and constants of 3D Gaussian splatting (Kerbl et al.
2023). Each SG lobe j has an amplitude a_j (3 channels), a sharpness lambda_j >= 0 and an axis n_j. Colours are not
clamped. d is the unit vector from the camera to the Gaussian, so that the colour has a gradient with respect to the
Gaussian's position.

`colors_reference` is the definition, in PyTorch at any float precision. Training calls `view_colors`, which uses the
Numba kernel of `color.cpu` for float32 tensors on a CPU and the Triton kernels of `color.gpu` for those on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ns_support.kernels.backend import triton_module
from raygauss_ns.color.reference import ColorBasis, colors_reference


def view_colors(basis: ColorBasis, means: Tensor, center: Tensor, alive: Tensor | None = None) -> Tensor:
    """Colours of N Gaussians as seen from a point; differentiable in the basis and the means, not in the point.

    Args:
        basis: coefficients; all of them are used.
        means: [N, 3] positions mu.
        center: [3] the camera's centre.
        alive: [N] bool, the Gaussians whose colour is needed; None: all. The kernel of the CPU gives the others colour
            0 and no gradient; on a GPU, it saves nothing.

    Returns:
        [N, 3], not clamped.
    """
    in_float32 = all(tensor.dtype == torch.float32 for tensor in (means, center, *basis))
    if means.device.type == "cpu" and in_float32:
        # Imported late: Numba takes a second to import.
        from raygauss_ns.color.cpu import KernelColors

        rows = torch.arange(len(means)) if alive is None else alive.nonzero()[:, 0]
        return KernelColors.apply(means, *basis, center, rows)
    if means.is_cuda and in_float32:
        gpu = triton_module("raygauss_ns.color.gpu", "colours on a GPU")
        colors: Tensor = gpu.GpuColors.apply(means, *basis, center)
        return colors
    return colors_reference(basis, normalize(means - center, dim=-1))
