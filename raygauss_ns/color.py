"""Colour of a Gaussian as seen from a direction: spherical harmonics for what is broad, spherical Gaussians for shine.

    c(d) = 0.5 + sum_i k_i Y_i(d) + sum_j a_j exp(lambda_j (d . n_j - 1)),   lambda = softplus(raw),  n = v / |v|

Y are the real spherical harmonics up to degree 2 with the signs and constants of 3D Gaussian splatting (Kerbl et al.
2023), each lobe j has an amplitude a_j (3 channels), a sharpness lambda_j >= 0 and an axis n_j; no clamp. d is the unit
vector from the camera to the Gaussian, so that colour has a gradient with respect to the Gaussian's position.

`colors_reference` is the definition, in PyTorch at any float precision; `view_colors` is what training calls and takes
the Numba kernel of `color_kernel` where there is one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

SH_DEGREE = 2
SH_BASES = (SH_DEGREE + 1) ** 2

Y0 = 0.28209479177387814
"""1 / (2 sqrt(pi))"""
Y1 = 0.4886025119029199
"""sqrt(3 / (4 pi))"""
Y2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
"""sqrt(15 / (4 pi)), sqrt(5 / (16 pi)), sqrt(15 / (16 pi))"""


class ColorBasis(NamedTuple):
    """What the colours of N Gaussians are made of: B harmonics beyond degree 0 and L lobes.

    Attributes:
        sh_base: [N, 3] coefficients of degree 0.
        sh_rest: [N, B, 3] coefficients of the higher degrees, B = 0, 3 or 8.
        sg_amplitudes: [N, L, 3] a.
        sg_sharpness: [N, L] lambda before the softplus.
        sg_axes: [N, L, 3] v, of any length but zero.
    """

    sh_base: Tensor
    sh_rest: Tensor
    sg_amplitudes: Tensor
    sg_sharpness: Tensor
    sg_axes: Tensor

    def unlocked(self, degree: int, lobes: bool) -> ColorBasis:
        """The part that counts early in training; what is locked costs nothing and gets no gradient.

        Args:
            degree: highest degree of the harmonics.
            lobes: whether the spherical Gaussians count.
        """
        bands = (degree + 1) ** 2 - 1
        rest = self.sh_rest if bands >= self.sh_rest.shape[1] else self.sh_rest[:, :bands]
        gaussians = [self.sg_amplitudes, self.sg_sharpness, self.sg_axes]
        if not lobes:
            gaussians = [parameter.detach()[:, :0] for parameter in gaussians]
        return ColorBasis(self.sh_base, rest, *gaussians)


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


def colors_reference(basis: ColorBasis, directions: Tensor) -> Tensor:
    """Colours of N Gaussians; differentiable in the basis and, through the directions, in the positions.

    Args:
        basis: coefficients; all of them count.
        directions: [N, 3] (or [3]) unit vectors from the camera to each Gaussian.

    Returns:
        [N, 3], not clamped.
    """
    color = 0.5 + Y0 * basis.sh_base
    bands = basis.sh_rest.shape[1]
    if bands > 0:
        harmonics = sh_basis(directions, 1 if bands == 3 else 2)[..., 1:].expand(len(color), -1)
        color = color + torch.einsum("nb,nbc->nc", harmonics, basis.sh_rest)
    if basis.sg_axes.shape[1] > 0:
        cosines = (normalize(basis.sg_axes, dim=-1) * directions.expand(len(color), 3)[:, None]).sum(-1)
        lobes = torch.exp(softplus(basis.sg_sharpness) * (cosines - 1.0))
        color = color + torch.einsum("nl,nlc->nc", lobes, basis.sg_amplitudes)
    return color


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
        from raygauss_ns.color_kernel import KernelColors

        rows = torch.arange(len(means)) if alive is None else alive.nonzero()[:, 0]
        return KernelColors.apply(means, *basis, center, rows)
    return colors_reference(basis, normalize(means - center, dim=-1))
