"""Adam for parameters with a row for each photograph, of which a training step sees few.

Plain Adam goes on moving a row between two visits, by its momentum, and forgets the row's second moment meanwhile: its
step grows with the number of photographs, and is of one length however uncertain its direction. Here the moments count
a row's own visits. A step is at most the learning rate, and much shorter where visits contradict one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.engine.optimizers import OptimizerConfig

from ns_support.help import documented


class VisitAdam(torch.optim.Optimizer):
    """Adam whose moments belong to rows and advance only when a row has a gradient.

    With m and v a row's moments after n visits, corrected for their start as Adam does, the row moves by
    -lr r |r|, r = m / sqrt(v): by lr where all visits agree, by much less where they do not. The first visit of a row
    moves nothing: it agrees with itself.

    Args:
        params: parameters [N, ...], or groups of them.
        lr: length of a step, > 0.
        betas: decay of the two moments for each visit.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.98)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the rows that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group["lr"], *group["betas"])

    def _step(self, parameter: torch.Tensor, gradient: torch.Tensor, rate: float, decay: float, decay2: float) -> None:
        state = self.state[parameter]
        if not state:
            state["visits"] = torch.zeros(len(parameter), dtype=torch.float32, device=parameter.device)
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        rows = gradient.flatten(1).any(1).nonzero()[:, 0]
        own = gradient[rows]
        state["visits"][rows] += 1
        state["mean"][rows] = torch.lerp(state["mean"][rows], own, 1 - decay)
        state["square"][rows] = torch.lerp(state["square"][rows], own.square(), 1 - decay2)
        visits = state["visits"][rows].view(-1, *[1] * (parameter.dim() - 1))
        mean = state["mean"][rows] / (1 - decay**visits)
        square = state["square"][rows] / (1 - decay2**visits)
        agreement = mean / square.sqrt().clamp_min(1e-30)
        parameter[rows] -= rate * (visits > 1) * agreement * agreement.abs().clamp_max(1)


@documented
@dataclass
class VisitAdamConfig(OptimizerConfig):
    """Adam for rows that are seen now and then."""

    _target: type = field(default_factory=lambda: VisitAdam)
    """Class to instantiate."""
    lr: float = 1e-3
    """Length of a step, the learning rate, > 0."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the first and second moment at each visit, each in [0, 1)."""

    def setup(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimiser."""
        return VisitAdam(params, lr=self.lr, betas=self.betas)
