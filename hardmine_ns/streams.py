"""The random numbers of a training step follow from the seed and the step: a resumed run draws the same."""

from __future__ import annotations

from enum import IntEnum

import torch

_STEP_STRIDE, _DRAW_STRIDE = 0x9E3779B1, 0x85EBCA77
"""A prime near 2^32 / golden ratio and MurmurHash3's: they keep the streams of neighbouring seeds and steps apart."""


class Draw(IntEnum):
    """The purpose of random numbers; each has its own stream."""

    GRID = 1
    RAYS = 2


def seed_step(seed: int, step: int, draw: Draw) -> None:
    """Start PyTorch's generators, of all devices, anew for a step.

    Whatever was drawn before, by an evaluation for instance, makes no difference then.

    Args:
        seed: of the training, in this process.
        step: training step, from 0.
        draw: what is drawn next.
    """
    torch.manual_seed((seed + _STEP_STRIDE * (step + 1) + _DRAW_STRIDE * draw) % (1 << 63))
