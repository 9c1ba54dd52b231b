"""Training schedules, as pure functions of the step.

The papers give their schedules for a training of 30,000 steps. A training of another length scales them in proportion:
half as many steps run through the same phases in half the time.

All random numbers of a training step come from a generator that is determined by the seed and the step alone. A run
that was stopped and resumed therefore draws the same numbers as one that was not.
"""

from __future__ import annotations

from enum import IntEnum

import torch

PAPER_STEPS = 30_000
"""Length of the training that the papers' step counts refer to."""
CPU_STEPS = 8_000
"""Default length of a training on a CPU: about a quarter of an hour on one core, whatever the size of the images, since
a step renders a crop of at most 128 x 128 pixels."""

_SEED_STRIDE = 0x9E3779B1
"""A prime close to 2^32 / golden ratio (Knuth's multiplicative hash): keeps the streams of different seeds apart."""

Rates = dict[str, tuple[float, ...]]
"""Learning rate of each kind of parameter and, if it decays exponentially, the one at the end of training. Those of the
means are multiplied by the camera extent. All decays are scaled to the length of training."""

DEFAULT_RATES: Rates = {
    "means": (1.6e-4, 1.6e-6),
    "scales": (0.0115,),
    "quats": (1e-3,),
    "densities": (1.0, 0.1),
    "sh_base": (1e-2, 1e-3),
    "sh_rest": (2.5e-3, 2.6e-4),
    "sg_amplitudes": (2.5e-3, 3.6e-4),
    "sg_sharpness": (0.045,),
    "sg_axes": (3e-3,),
}

SYNTHETIC_RATES: Rates = {
    "means": (1.7e-5, 1e-6),
    "scales": (0.0115,),
    "quats": (2.2e-4,),
    "densities": (0.5, 0.03),
    "sh_base": (1e-3,),
    "sh_rest": (2.6e-4,),
    "sg_amplitudes": (3.6e-4,),
    "sg_sharpness": (0.045,),
    "sg_axes": (3e-3,),
}

REAL_RATES: Rates = {
    "means": (1.6e-4, 1.6e-6),
    "scales": (0.012,),
    "quats": (1e-3,),
    "densities": (0.5, 1e-4),
    "sh_base": (1.3e-3,),
    "sh_rest": (1.1e-4,),
    "sg_amplitudes": (6.4e-4,),
    "sg_sharpness": (0.095,),
    "sg_axes": (2e-3,),
}

BACKGROUND_RATE = (1e-2, 1e-3)
"""The same for a learned background."""
CORRECTION_RATES: Rates = {"camera_opt": (1.0, 0.1), "exposure": (0.9, 0.15)}
"""The same for a photograph's pose and colours: parts of the way that each visit of the photograph goes."""


class Draw(IntEnum):
    """The purpose of a random number; each has its own stream."""

    WINDOW = 0
    BACKGROUND = 1
    SPLIT = 2


def stretched(paper_step: int, total: int) -> int:
    """A step or a number of steps of the papers' schedule, scaled to a training of `total` steps.

    Example:
        >>> stretched(15_000, total=3_000)
        1500
    """
    return round(paper_step * total / PAPER_STEPS)


def decayed(rate: tuple[float, ...], progress: float) -> float:
    """A learning rate of `Rates` at a fraction of training, in [0, 1]."""
    return rate[0] * (rate[-1] / rate[0]) ** progress


def downscales_at(step: int, most: int, full_from: int) -> int:
    """How often the sides of the images are halved at a training step: `most` times first, then once less each time.

    Args:
        step: training step.
        most: at the first step, >= 0.
        full_from: step from which images are used as they are; the steps before it are divided equally.

    Example:
        >>> [downscales_at(step, most=2, full_from=600) for step in (0, 299, 300, 599, 600)]
        [2, 2, 1, 1, 0]
    """
    return 0 if step >= full_from else most - step * most // full_from


def active_colors(step: int, interval: int, sh_degree: int) -> tuple[int, bool]:
    """The active part of the colour basis: degree 1 after one interval, 2 after two, spherical Gaussians after three.

    Args:
        step: training step.
        interval: steps between two activations; 0: everything is active from the start.
        sh_degree: highest degree of the model.

    Returns:
        The active SH degree, and whether the spherical Gaussians are active.
    """
    if interval == 0:
        return sh_degree, True
    return min(sh_degree, step // interval), step >= 3 * interval


def steps_per_update(step: int, start: int, steps: int) -> int:
    """Gradient accumulation steps: the number of training steps of the optimiser step that `step` belongs to.

    Groups of steps begin at multiples of their size, the first one included, as in nerfstudio's trainer.

    Args:
        step: training step.
        start: step from which gradients are accumulated.
        steps: size of a group from then on.
    """
    first = -(-start // steps) * steps
    return steps if step >= first else 1


def step_seed(seed: int, step: int, draw: Draw) -> int:
    """The seed of one step's random numbers for a purpose; distinct for distinct arguments in any ordinary training."""
    return (seed * _SEED_STRIDE + step * len(Draw) + int(draw)) % (1 << 63)


def step_generator(seed: int, step: int, draw: Draw) -> torch.Generator:
    """A generator on the CPU, seeded with `step_seed`."""
    return torch.Generator().manual_seed(step_seed(seed, step, draw))
