"""Real spherical harmonics up to degree 2, signs and constants as in 3D Gaussian splatting (Kerbl et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from ns_support.kernels.harmonics import Y0, Y1, Y2

SH_DEGREE = 2
SH_BASES = (SH_DEGREE + 1) ** 2


def rgb_to_sh_base(rgb: Tensor) -> Tensor:
    """The degree-0 coefficient that gives a colour in every direction; any shape."""
    return (rgb - 0.5) / Y0


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
    bases = [torch.full_like(x, Y0)]
    if degree >= 1:
        bases += [-Y1 * y, Y1 * z, -Y1 * x]
    if degree >= 2:
        bases += [
            Y2[0] * x * y,
            -Y2[0] * y * z,
            Y2[1] * (2 * z * z - x * x - y * y),
            -Y2[0] * x * z,
            Y2[2] * (x * x - y * y),
        ]
    return torch.stack(bases, -1)
