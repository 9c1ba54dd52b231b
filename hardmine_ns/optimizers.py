"""The optimiser's configuration, as nerfstudio wants it."""

from __future__ import annotations

from dataclasses import dataclass

from nerfstudio.engine.optimizers import OptimizerConfig

from hardmine_ns.hash_encoding import RowAdam


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
