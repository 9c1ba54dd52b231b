"""When what happens in training, as pure functions of the step.

The papers give their schedules for a training of 30,000 steps. A training of another length stretches them in
proportion, so that half as many steps run through the same phases in half the time.

Whatever is drawn at random during training comes from a generator that the seed and the step determine, not from what
was drawn before: a run that was stopped and resumed draws the same numbers as one that was not.
"""

from __future__ import annotations

from enum import IntEnum

import torch

PAPER_STEPS = 30_000
"""Length of the training that the papers' step counts refer to."""
CPU_STEPS = 2_500
"""Length of training on a CPU unless told otherwise: about 20 minutes on two cores, whatever the images' size, since a
step sees a window of 256 x 256 pixels at most."""

Rates = dict[str, tuple[float, ...]]
"""Learning rate of each kind of parameter, and the one at the end of training where it decays exponentially. That of
the means is multiplied by the camera extent, and all decays follow the length of training."""

DEFAULT_RATES: Rates = {
    "means": (1.6e-4, 1.6e-6),
    "scales": (0.0115,),
    "quats": (1e-3,),
    "densities": (0.2, 0.03),
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


class Draw(IntEnum):
    """What a random number is for: each has a stream of its own."""

    WINDOW = 0
    BACKGROUND = 1
    SPLIT = 2


def stretched(paper_step: int, total: int) -> int:
    """A step or a number of steps of the papers' schedule in a training of `total` steps.

    Example:
        >>> stretched(15_000, total=3_000)
        1500
    """
    return round(paper_step * total / PAPER_STEPS)


def decayed(rate: tuple[float, ...], progress: float) -> float:
    """A learning rate of `Rates` at a part of training, in [0, 1]."""
    return rate[0] * (rate[-1] / rate[0]) ** progress


def unlocked_colors(step: int, interval: int, sh_degree: int) -> tuple[int, bool]:
    """What of the colour basis counts at a step: degree 1 after one interval, 2 after two, the lobes after three.

    Args:
        step: training step.
        interval: steps between two unlockings; 0: everything counts from the start.
        sh_degree: highest degree there is.

    Returns:
        The degree of the harmonics, and whether the spherical Gaussians count.
    """
    if interval == 0:
        return sh_degree, True
    return min(sh_degree, step // interval), step >= 3 * interval


def steps_per_update(step: int, start: int, steps: int) -> int:
    """How many training steps the optimiser step that `step` belongs to averages over.

    Groups of steps begin at multiples of their number, as nerfstudio's trainer has it; so does the first one.

    Args:
        step: training step.
        start: step from which on gradients are accumulated.
        steps: how many of them.
    """
    first = -(-start // steps) * steps
    return steps if step >= first else 1


def step_seed(seed: int, step: int, draw: Draw) -> int:
    """The seed for what one step draws at random; distinct for distinct arguments in any ordinary training."""
    return (seed * 0x9E3779B1 + step * len(Draw) + int(draw)) % (1 << 63)


def step_generator(seed: int, step: int, draw: Draw) -> torch.Generator:
    """A generator on the host in the state that `step_seed` determines."""
    return torch.Generator().manual_seed(step_seed(seed, step, draw))
