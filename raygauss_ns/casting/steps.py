"""The step-size schedule of the adaptive step: a ray is sampled in slabs of n samples, each slab with its own step.

The step depends on the distance from the ray's origin and on the transmittance. Slab i begins at the distance e_i. With
dt0 the `step`, g the `step_growth`, gamma the `transmittance_exponent`, dt_max the `max_step` and T_i the transmittance
before the slab,

    dt_i = min(max(g e_i, dt0) T_i^-gamma, dt_max),    e_0 = near,    e_{i+1} = e_i + n dt_i
    t = e_i + (j + offset) dt_i    for j = 0 ... n - 1

which is RayGaussX's rule for real scenes (arXiv 2509.07782: g = 1/1024, gamma = 1/3, dt0 = 0.005, dt_max = 4 dt0). With
g = gamma = 0 it is the uniform step.

While T is constant, as in empty space, the beginnings of the slabs have a closed form. The slab that contains a given
distance is found by inverting it, without iterating over the slabs in between. With r = 1 + n g T^-gamma, the m-th slab
after one that begins at e begins at

    e + m n min(dt0 T^-gamma, dt_max)    up to e = dt0 / g
    e r^m                                up to e = dt_max T^gamma / g
    e + m n dt_max                       from there on

Where this differs from the paper and its code:

- Empty space is skipped in whole slabs of the same schedule. RayGaussX begins a new slab where the ray enters an
  ellipsoid. Here the positions of the samples do not depend on how the Gaussians are found, or on the other rays of a
  packet.
- n is `samples_per_slab`, rounded up to a multiple of 16 (the lanes of a vector); the paper's is 32.
- The step of a slab uses T at the beginning of the slab. Whether a sample still contributes is decided sample by
  sample, as with the uniform step.
- The gradient treats the positions of the samples as constants: T_i depends on the Gaussians, but dt_i is not
  differentiated.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from raygauss_ns.casting.types import CastSettings

MULTIPLE = 16
"""The number of samples of a slab is a multiple of this."""


class StepSchedule(NamedTuple):
    """The parameters of the step-size schedule; lengths as in `CastSettings`.

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


def step_schedule(settings: CastSettings) -> StepSchedule:
    """The schedule that the settings describe."""
    return StepSchedule(
        float(settings.step),
        float(settings.step_growth),
        float(settings.transmittance_exponent),
        float(settings.max_step) if settings.max_step > 0 else math.inf,
        -(-settings.samples_per_slab // MULTIPLE) * MULTIPLE,
    )


def step_lengths(begins: Tensor, transmittance: Tensor, schedule: StepSchedule) -> Tensor:
    """The steps dt of slabs that begin at given distances.

    Args:
        begins: [R] distances e >= 0.
        transmittance: [R] before the slabs, in [0, 1].
        schedule: its parameters.

    Returns:
        [R], not differentiable.
    """
    stretch = transmittance.detach().clamp_min(1e-30) ** -schedule.exponent
    return ((schedule.growth * begins).clamp_min(schedule.step) * stretch).clamp_max(schedule.limit)


# ---- for one ray: `cpu.march_growing` compiles these -----------------------------------------------------------------


def step_at(begin: float, transmittance: float, schedule: StepSchedule) -> float:
    """The step dt of a slab, from the distance at which it begins and the transmittance > 0 before it."""
    stretch = transmittance**-schedule.exponent if schedule.exponent > 0.0 else 1.0
    return min(max(schedule.growth * begin, schedule.step) * stretch, schedule.limit)


def advance(begin: float, target: float, transmittance: float, schedule: StepSchedule) -> float:
    """The beginning of the slab that contains a distance, if the transmittance is constant up to there.

    Args:
        begin: where a slab begins, e >= 0.
        target: the distance; if it is not beyond `begin`, the result is `begin`.
        transmittance: T in (0, 1].
        schedule: its parameters.
    """
    if not target > begin:
        return begin
    target = min(target, 1e30)
    stretch = transmittance**-schedule.exponent if schedule.exponent > 0.0 else 1.0
    samples = float(schedule.samples)
    if schedule.growth * begin < schedule.step:
        length = samples * min(schedule.step * stretch, schedule.limit)
        whole = math.floor(min((target - begin) / length, 1e15))
        slabs = (
            math.ceil(min((schedule.step / schedule.growth - begin) / length, 1e15)) if schedule.growth > 0.0 else whole
        )
        begin += min(whole, slabs) * length
        if whole <= slabs:
            return begin
    if schedule.growth * begin * stretch < schedule.limit:
        per_slab = math.log1p(samples * schedule.growth * stretch)
        whole = math.floor(math.log(target / begin) / per_slab)
        slabs = whole
        if schedule.limit < math.inf:
            slabs = math.ceil(math.log(schedule.limit / (schedule.growth * begin * stretch)) / per_slab)
        begin *= math.exp(min(whole, slabs) * per_slab)
        if whole <= slabs:
            return begin
    length = samples * schedule.limit
    return begin + math.floor(min(max(target - begin, 0.0) / length, 1e15)) * length
