"""The optimiser's and the learning rate's configuration, as nerfstudio wants them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nerfstudio.engine.optimizers import OptimizerConfig, Optimizers
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hardmine_ns.hash_encoding import RowAdam
from ns_support.help import documented
from ns_support.schedulers import FloatExponentialDecay, FloatExponentialDecayConfig, refit


@documented
@dataclass
class RowAdamOptimizerConfig(OptimizerConfig):
    """Adam that leaves the hash table's untouched rows alone; instant-ngp's settings."""

    _target: type = RowAdam
    """Class to instantiate."""
    lr: float = 1e-2
    """Step length, the learning rate, > 0."""
    eps: float = 1e-15
    """Added to the root of the second moment, >= 0."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the first and second moment, each in [0, 1)."""


@documented
@dataclass
class FullLengthDecayConfig(FloatExponentialDecayConfig):
    """Exponential decay over the whole training, however long it is."""

    _target: type = field(default_factory=lambda: FullLengthDecay)
    """Class to instantiate."""
    max_steps: int = 0
    """Steps after which lr_final is reached, >= 0; 0: as many as the training has."""


class FullLengthDecay(FloatExponentialDecay):
    """Without a length of its own it stays constant until `fit_learning_rates` tells it the training's."""

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        """Torch scheduler whose state holds only Python numbers."""
        scheduler = super().get_scheduler(optimizer, lr_init)
        if self.config.max_steps == 0:
            refit(optimizer, scheduler, max_steps=math.inf)
        return scheduler


def fit_learning_rates(optimizers: Optimizers, total_steps: int) -> int:
    """Tell each `FullLengthDecay` without a length of its own that of the training.

    The length goes into the scheduler's state, and with it into checkpoints. One that was loaded from there stays: a
    resumed run keeps the decay that it began with.

    Args:
        optimizers: those of the training, their states loaded.
        total_steps: its length, > 0.

    Returns:
        The length that the decays have now.
    """
    length = total_steps
    for name, scheduler in optimizers.schedulers.items():
        config = optimizers.config[name]["scheduler"]
        if isinstance(config, FullLengthDecayConfig) and config.max_steps == 0:
            # What a scheduler has as an attribute, it saves and loads.
            length = vars(scheduler).setdefault("training_steps", total_steps)
            refit(optimizers.optimizers[name], scheduler, max_steps=length)
    return length
