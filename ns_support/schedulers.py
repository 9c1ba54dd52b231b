"""Exponential learning-rate decay in plain Python floats.

nerfstudio's own `ExponentialDecayScheduler` computes with NumPy and leaves its scalars in the checkpoint, where
torch >= 2.6 refuses to load them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig, Scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ns_support.errors import UserError
from ns_support.help import documented


def exponential_decay(
    step: int,
    lr_init: float,
    lr_final: float,
    max_steps: int,
    warmup_steps: int = 0,
    lr_pre_warmup: float = 1e-8,
    ramp: Literal["linear", "cosine"] = "cosine",
) -> float:
    """Learning rate at `step`: a ramp up to `lr_init`, then log-linear to `lr_final`, then constant.

    Args:
        step: optimiser step, from 0.
        lr_init: rate at the end of the warm-up, > 0.
        lr_final: rate from `max_steps` on, > 0.
        max_steps: the step that reaches `lr_final`, warm-up included.
        warmup_steps: length of the ramp in steps; 0 for none.
        lr_pre_warmup: rate at step 0 when there is a warm-up.
        ramp: a straight line, or the first quarter of a sine ("cosine", as nerfstudio calls it).

    Example:
        >>> exponential_decay(50, lr_init=1e-2, lr_final=1e-4, max_steps=100)
        0.001
    """
    if step < warmup_steps:
        progress = step / warmup_steps
        if ramp == "cosine":
            progress = math.sin(0.5 * math.pi * progress)
        return lr_pre_warmup + (lr_init - lr_pre_warmup) * progress
    t = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    return lr_init * (lr_final / lr_init) ** t


def _factor(step: int, lr_init: float, **schedule: Any) -> float:
    return exponential_decay(step, lr_init, **schedule) / lr_init


@documented
@dataclass
class FloatExponentialDecayConfig(ExponentialDecaySchedulerConfig):
    """nerfstudio's exponential decay with the same fields, computed in Python floats."""

    _target: type = field(default_factory=lambda: FloatExponentialDecay)
    """Class to instantiate."""


class FloatExponentialDecay(Scheduler):
    """Multiplies each group's learning rate by `exponential_decay(step) / lr_init`."""

    config: FloatExponentialDecayConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        """Torch scheduler whose state holds only Python numbers.

        The schedule itself stays out of that state: a resumed run follows the configuration it was started with.

        Raises:
            UserError: when a learning rate is not positive; its logarithm is what is interpolated.
        """
        lr_final = lr_init if self.config.lr_final is None else self.config.lr_final
        if lr_init <= 0 or lr_final <= 0:
            raise UserError(f"Exponential decay needs learning rates > 0, got lr {lr_init} and lr_final {lr_final}.")
        return LambdaLR(
            optimizer,
            partial(
                _factor,
                lr_init=float(lr_init),
                lr_final=float(lr_final),
                max_steps=self.config.max_steps,
                warmup_steps=self.config.warmup_steps,
                lr_pre_warmup=self.config.lr_pre_warmup,
                ramp=self.config.ramp,
            ),
        )


def refit(
    optimizer: Optimizer, scheduler: LambdaLR | None, learning_rate: float | None = None, **lengths: float
) -> None:
    """Give a schedule another length, and an optimiser another learning rate, as if they had had them from the start.

    Args:
        optimizer: of one kind of parameters.
        scheduler: its schedule, if it has one.
        learning_rate: before the schedule's factor; None: as it is.
        lengths: arguments of `exponential_decay`, for a schedule of `FloatExponentialDecay`.
    """
    factor = 1.0
    if isinstance(scheduler, LambdaLR):
        if lengths:
            scheduler.lr_lambdas = [partial(function, **lengths) for function in scheduler.lr_lambdas]
        if learning_rate is not None:
            scheduler.base_lrs = [learning_rate] * len(scheduler.base_lrs)
        factor = scheduler.lr_lambdas[0](scheduler.last_epoch)
    for group in optimizer.param_groups:
        if learning_rate is not None:
            group["initial_lr"] = learning_rate
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
