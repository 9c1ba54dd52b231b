"""Inputs and outputs of the caster, and the quantities that every back end must compute alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MOST_SAMPLES = 1 << 20
"""A ray's samples end after so many of the uniform step: a Gaussian of a senseless scale must not make a ray that takes
hours. With steps of a hundredth of the scene unit, that is 10,000 units."""


class Gaussians(NamedTuple):
    """A set of N anisotropic Gaussians, each with peak density sigma: sigma_l exp(-|A_l (x - mu_l)|^2 / 2).

    Attributes:
        means: [N, 3] centres mu.
        scales: [N, 3] standard deviations s > 0 along the principal axes (length).
        quats: [N, 4] rotations as quaternions, w first; normalised here.
        densities: [N] peak densities sigma (1/length); negative ones count as 0.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    densities: Tensor


class WhitenedGaussians(NamedTuple):
    """N Gaussians as the kernels work with them.

    Attributes:
        means: [N, 3] centres mu.
        whitenings: [N, 3, 3] A = diag(1/s) R^T, the inverse square root of the covariance.
        densities: [N] peak densities sigma (1/length).
        colors: [N, 3].
    """

    means: Tensor
    whitenings: Tensor
    densities: Tensor
    colors: Tensor


class Rays(NamedTuple):
    """R rays.

    Attributes:
        origins: [R, 3].
        directions: [R, 3] of unit length.
        nears: [R] distance along the ray at which it begins (length); samples are counted from here.
        fars: [R] distance at which it ends; may be infinite. near >= far is an empty ray.
        image_width: pixels of a row when the rays are an image, row by row: neighbouring pixels are then cast together,
            several times faster. 0 for incoherent rays. Affects only speed.
    """

    origins: Tensor
    directions: Tensor
    nears: Tensor
    fars: Tensor
    image_width: int = 0

    def select(self, rows: Tensor) -> Rays:
        """Some of the rays, as incoherent ones.

        Args:
            rows: [r] int64 indices.
        """
        return Rays(self.origins[rows], self.directions[rows], self.nears[rows], self.fars[rows])


class CastSettings(NamedTuple):
    """How rays are sampled. Lengths are in the units of the Gaussians' means.

    Attributes:
        step: dt > 0, distance between samples.
        density_threshold: eps > 0, density below which a Gaussian counts as zero (1/length).
        sample_offset: where in its step a sample sits, in [0, 1): 0 the left end, 0.5 the midpoint.
        transmittance_threshold: a sample contributes only while the transmittance before it exceeds this; in [0, 1).
        samples_per_slab: K, samples that are processed together; has no influence on the result unless the step grows,
            when it is chosen anew for each slab (`steps` says how).
        step_growth: g >= 0, growth of the step with the distance t from a ray's origin: dt = max(step, g t); without a
            unit.
        transmittance_exponent: gamma >= 0: dt grows with T^-gamma as the transmittance T falls.
        max_step: dt_max >= step, what dt never grows beyond; 0 for no such bound.
    """

    step: float
    density_threshold: float
    sample_offset: float = 0.0
    transmittance_threshold: float = 1e-4
    samples_per_slab: int = 32
    step_growth: float = 0.0
    transmittance_exponent: float = 0.0
    max_step: float = 0.0

    @property
    def grows(self) -> bool:
        """Whether the step is not the same everywhere."""
        return self.step_growth > 0 or self.transmittance_exponent > 0


class RayOutputs(NamedTuple):
    """The rendering of R rays.

    Attributes:
        rgb: [R, 3] sum of T alpha c, without a background.
        transmittance: [R] T behind the last sample: what a background is seen through.
        depth: [R] sum of T alpha t, the expected distance along the ray times its accumulation 1 - T (length).
    """

    rgb: Tensor
    transmittance: Tensor
    depth: Tensor


def whitening_matrices(scales: Tensor, quats: Tensor) -> Tensor:
    """A = diag(1/s) R(q)^T for each Gaussian, so that |A (x - mu)| is a distance in standard deviations.

    Args:
        scales: [N, 3].
        quats: [N, 4], w first, of any length but zero.

    Returns:
        [N, 3, 3], differentiable in both.
    """
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    transposed_rotation = torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], -1),
            torch.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], -1),
            torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        -2,
    )
    return transposed_rotation / scales[..., None]


def sample_counts(nears: Tensor, fars: Tensor, settings: CastSettings) -> Tensor:
    """How many samples t_k = near + (k + offset) dt lie before each ray's far end.

    In float64 whatever the input, so that back ends of different precision march the same samples.

    Args:
        nears: [R] distance at which a ray begins.
        fars: [R] distance at which it ends; may be infinite. near >= far is an empty ray.
        settings: step and offset.

    Returns:
        [R] int32, from 0 to `MOST_SAMPLES`.
    """
    steps = (fars.double() - nears.double()) / settings.step - settings.sample_offset
    return torch.nan_to_num(steps.ceil(), nan=0.0).clamp(0, MOST_SAMPLES).to(torch.int32)


def far_ends(nears: Tensor, fars: Tensor, settings: CastSettings) -> tuple[Tensor, Tensor]:
    """Finite beginnings, and ends that are not NaN, of rays whose samples nobody has counted.

    Args:
        nears: [R] distance at which a ray begins.
        fars: [R] distance at which it ends; may be infinite. near >= far is an empty ray.
        settings: the steps; unless they grow without limit, a ray ends `MOST_SAMPLES` of the longest behind its near.

    Returns:
        [R] and [R]: the same, but 0 and -1 for an empty ray.
    """
    some = nears < fars
    if settings.step_growth == 0 or settings.max_step > 0:
        fars = torch.minimum(fars, nears + MOST_SAMPLES * max(settings.step, settings.max_step))
    return torch.where(some, nears, 0.0), torch.where(some, fars, -1.0)
