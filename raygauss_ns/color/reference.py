"""The definition of a Gaussian's colour, in PyTorch at any float precision: what the kernels are tested against."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from ns_support.kernels.harmonics import Y0
from raygauss_ns.color.harmonics import sh_basis


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
