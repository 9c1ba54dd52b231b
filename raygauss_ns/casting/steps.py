"""Where a ray's samples lie when the step grows: slab after slab of n samples, a step for each slab.

Slab i begins at the distance e_i from the ray's origin. With dt0 the `step`, g the `step_growth`, gamma the
`transmittance_exponent`, dt_max the `max_step` and T_i the transmittance before the slab,

    dt_i = min(max(g e_i, dt0) T_i^-gamma, dt_max),    e_0 = near,    e_{i+1} = e_i + n dt_i
    t = e_i + (j + offset) dt_i    for j = 0 ... n - 1

which is RayGaussX's rule for real scenes (arXiv 2509.07782: g = 1/1024, gamma = 1/3, dt0 = 0.005, dt_max = 4 dt0). With
g = gamma = 0 it is the uniform step.

While T stays what it is, as in empty space, the slabs' beginnings have a closed form, so that the one which holds a
given distance is found by inverting it instead of walking there. With r = 1 + n g T^-gamma, m slabs further on lies

    e + m n min(dt0 T^-gamma, dt_max)    up to e = dt0 / g
    e r^m                                up to e = dt_max T^gamma / g
    e + m n dt_max                       from there on

Where this differs from the paper and its code:

- Empty space is passed over in whole slabs, on the same ladder. RayGaussX begins a slab anew where the ray enters an
  ellipsoid; here a sample's place does not depend on how the Gaussians are searched for, or with which other rays.
- n is `samples_per_slab`, rounded up to a multiple of 16 (the lanes of a vector); the paper's is 32.
- T is looked at when a slab begins, for its step. Whether a sample still counts is decided sample by sample, as for the
  uniform step.
- The gradient takes the samples' places as given: T_i depends on the Gaussians, but dt_i is not differentiated.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from raygauss_ns.casting.types import CastSettings

MULTIPLE = 16
"""What the number of samples of a slab is a multiple of."""


class Ladder(NamedTuple):
    """The rule for the steps; lengths as in `CastSettings`.

    Attributes:
        step: dt0.
        growth: g.
        exponent: gamma.
        limit: dt_max, infinite where there is none.
        samples: n.
    """

    step: float
    growth: float
    exponent: float
    limit: float
    samples: int


def ladder_of(settings: CastSettings) -> Ladder:
    """The rule that the settings ask for."""
    return Ladder(
        float(settings.step),
        float(settings.step_growth),
        float(settings.transmittance_exponent),
        float(settings.max_step) if settings.max_step > 0 else math.inf,
        -(-settings.samples_per_slab // MULTIPLE) * MULTIPLE,
    )


def step_lengths(begins: Tensor, transmittance: Tensor, ladder: Ladder) -> Tensor:
    """The steps dt of slabs that begin at given distances.

    Args:
        begins: [R] distances e >= 0.
        transmittance: [R] before the slabs, in [0, 1].
        ladder: the rule.

    Returns:
        [R], not differentiable.
    """
    stretch = transmittance.detach().clamp_min(1e-30) ** -ladder.exponent
    return ((ladder.growth * begins).clamp_min(ladder.step) * stretch).clamp_max(ladder.limit)


# ---- for one ray: `growing` compiles these ---------------------------------------------------------------------------


def step_at(begin: float, transmittance: float, ladder: Ladder) -> float:
    """The step dt of a slab that begins at a distance, with that transmittance > 0 before it."""
    stretch = transmittance**-ladder.exponent if ladder.exponent > 0.0 else 1.0
    return min(max(ladder.growth * begin, ladder.step) * stretch, ladder.limit)


def advance(begin: float, target: float, transmittance: float, ladder: Ladder) -> float:
    """Where the slab begins that holds a distance, when the transmittance does not change on the way.

    Args:
        begin: where some slab begins, e >= 0.
        target: the distance; where it is not behind `begin`, that is the answer.
        transmittance: T in (0, 1].
        ladder: the rule.
    """
    if not target > begin:
        return begin
    target = min(target, 1e30)
    stretch = transmittance**-ladder.exponent if ladder.exponent > 0.0 else 1.0
    samples = float(ladder.samples)
    if ladder.growth * begin < ladder.step:
        length = samples * min(ladder.step * stretch, ladder.limit)
        whole = math.floor(min((target - begin) / length, 1e15))
        slabs = math.ceil(min((ladder.step / ladder.growth - begin) / length, 1e15)) if ladder.growth > 0.0 else whole
        begin += min(whole, slabs) * length
        if whole <= slabs:
            return begin
    if ladder.growth * begin * stretch < ladder.limit:
        per_slab = math.log1p(samples * ladder.growth * stretch)
        whole = math.floor(math.log(target / begin) / per_slab)
        slabs = whole
        if ladder.limit < math.inf:
            slabs = math.ceil(math.log(ladder.limit / (ladder.growth * begin * stretch)) / per_slab)
        begin *= math.exp(min(whole, slabs) * per_slab)
        if whole <= slabs:
            return begin
    length = samples * ladder.limit
    return begin + math.floor(min(max(target - begin, 0.0) / length, 1e15)) * length
