"""Colour of a Gaussian as seen from a direction: real spherical harmonics up to degree 2.

    c(d) = 0.5 + sum_i k_i Y_i(d)

Signs and constants as in 3D Gaussian splatting (Kerbl et al. 2023); no clamp. d points from the camera to the Gaussian.
"""

from __future__ import annotations

import torch
from torch import Tensor

SH_DEGREE = 2
SH_BASES = (SH_DEGREE + 1) ** 2

_Y0 = 0.28209479177387814  # 1 / (2 sqrt(pi))
_Y1 = 0.4886025119029199  # sqrt(3 / (4 pi))
_Y2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)


def rgb_to_sh_base(rgb: Tensor) -> Tensor:
    """The degree-0 coefficient that gives a colour in every direction; any shape."""
    return (rgb - 0.5) / _Y0


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics.

    Args:
        directions: [*, 3] unit vectors.
        degree: 0, 1 or 2.

    Returns:
        [*, (degree + 1)^2].

    Raises:
        ValueError: another degree.
    """
    if degree not in range(SH_DEGREE + 1):
        raise ValueError(f"degree must be in 0..{SH_DEGREE}, got {degree}")
    x, y, z = directions.unbind(-1)
    bases = [torch.full_like(x, _Y0)]
    if degree >= 1:
        bases += [-_Y1 * y, _Y1 * z, -_Y1 * x]
    if degree >= 2:
        bases += [
            _Y2[0] * x * y,
            -_Y2[0] * y * z,
            _Y2[1] * (2 * z * z - x * x - y * y),
            -_Y2[0] * x * z,
            _Y2[2] * (x * x - y * y),
        ]
    return torch.stack(bases, -1)


def sh_colors(sh_base: Tensor, sh_rest: Tensor, directions: Tensor, degree: int) -> Tensor:
    """Colours of N Gaussians; differentiable in the coefficients and, through the directions, in the positions.

    Args:
        sh_base: [N, 3] coefficients of degree 0.
        sh_rest: [N, 8, 3] coefficients of degrees 1 and 2.
        directions: [N, 3] (or [3]) unit vectors from the camera to each Gaussian.
        degree: highest degree that counts.

    Returns:
        [N, 3], not clamped.
    """
    color = 0.5 + _Y0 * sh_base
    if degree == 0:
        return color
    basis = sh_basis(directions, degree)[..., 1:].expand(len(sh_base), -1)
    return color + torch.einsum("nb,nbc->nc", basis, sh_rest[:, : basis.shape[-1]])
