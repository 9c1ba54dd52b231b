"""Newton's method for parameters with a row for each photograph, of which a training step sees few.

A photograph's pose has six numbers and its exposure four a channel: few enough to keep, beside each row, the matrix of
second derivatives of the loss. A gradient alone says in which direction a row should move, and not how far. Adam's
steps have one length, too short after a large error and too long once it is gone, and one unit for all directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from torch import Tensor

from ns_support.help import documented

_SHARED_VISITS = 2.0
"""Visits of its own after which a row's curvature counts as much as the mean of all rows'."""
_DECAY = 0.9
"""Decay of a row's curvature at each visit."""
_DAMPING = 0.03
"""Part of the mean curvature of each direction that is added: directions that a photograph does not tell stay."""


class VisitNewton(torch.optim.Optimizer):
    """Newton steps, each with a part of the way, for rows whose curvature comes with the gradient.

    With g the gradient and H the running mean of the curvature over a row's visits, a visit moves the row by

        -lr (H + damping)^-1 g

    which, at a constant lr, averages over about 1 / lr visits.

    Args:
        params: the parameter [N, *, D], and a second one [N, D, D] of zeros whose gradient is the curvature with
            respect to the last dimension (`curvature_term`); or groups of two.
        lr: part of the way, in (0, 1].
        longest: length of the longest step of a row, > 0.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.5, longest: float = math.inf) -> None:
        super().__init__(params, {"lr": lr, "longest": longest})
        for group in self.param_groups:
            shapes = [tuple(parameter.shape) for parameter in group["params"]]
            if len(shapes) != 2 or shapes[1] != (shapes[0][0], shapes[0][-1], shapes[0][-1]):
                raise ValueError(f"VisitNewton needs parameters [N, *, D] and [N, D, D], got {shapes}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the rows that have a curvature."""
        for group in self.param_groups:
            parameter, curvature = group["params"]
            if parameter.grad is not None and curvature.grad is not None:
                self._step(parameter, parameter.grad, curvature.grad, group["lr"], group["longest"])

    def _step(self, parameter: Tensor, gradient: Tensor, curvature: Tensor, rate: float, longest: float) -> None:
        state = self.state[parameter]
        if not state:
            state["visits"] = torch.zeros(len(parameter), dtype=torch.float32, device=parameter.device)
            state["curvature"] = torch.zeros_like(curvature)
        visited = curvature.flatten(1).any(1)
        # To know which, the host would wait for a GPU; that computes all of them.
        rows = visited.nonzero()[:, 0] if visited.device.type == "cpu" else slice(None)
        state["visits"] += visited
        latest = torch.lerp(state["curvature"][rows], curvature[rows], 1 - _DECAY)
        state["curvature"][rows] = torch.where(visited[rows, None, None], latest, state["curvature"][rows])
        visits = state["visits"].double()[:, None, None]
        # As a plain mean at first: corrected for its start as Adam's moments are.
        means = state["curvature"].double() / (1 - _DECAY ** visits.clamp_min(1))
        shared = means.sum(0) / (visits > 0).sum()
        own = torch.lerp(shared.expand_as(means[rows]), means[rows], visits[rows] / (visits[rows] + _SHARED_VISITS))
        spread = shared.diagonal()
        damped = own + torch.diag(_DAMPING * spread + 1e-9 * spread.max() + 1e-30)
        width = parameter.shape[-1]
        wanted = gradient[rows].double().reshape(len(damped), -1, width).mT
        # Damped as they are, none of these systems is singular: nobody needs to look.
        step = rate * torch.linalg.solve_ex(damped, wanted).result.mT
        step *= (longest / step.flatten(1).norm(dim=1).clamp_min(longest))[:, None, None]
        step = torch.where(visited[rows, None, None], step, 0.0)
        parameter[rows] -= step.reshape(gradient[rows].shape).to(parameter)


def curvature_term(place: Tensor, curvature: Tensor) -> Tensor:
    """A term of the loss, of value 0, that hands a curvature on to `VisitNewton`.

    As a gradient it is averaged over images and processes just as the gradient is that it belongs to.

    Args:
        place: [*] zeros, or rows of them: the second parameter.
        curvature: [*] second derivatives of the loss.

    Returns:
        A scalar, whose gradient with respect to `place` is the curvature.
    """
    return (place * curvature.detach()).sum()


def l1_curvature(residuals: Tensor, kept: Tensor | None = None) -> Tensor:
    """Second derivative of the mean absolute residual with respect to a shift of all of them.

    Of normally distributed residuals of standard deviation s it is twice their density at 0, sqrt(2 / pi) / s.

    Args:
        residuals: [*, C].
        kept: [*] bool, those that count; None: all.

    Returns:
        A scalar.
    """
    squares = residuals.detach().square()
    mean = squares.mean() if kept is None else (squares.mean(-1) * kept).sum() / kept.sum().clamp_min(1)
    return math.sqrt(2 / math.pi) / mean.sqrt().clamp_min(1e-3)


@documented
@dataclass
class VisitNewtonConfig(OptimizerConfig):
    """Newton's method for rows that are seen now and then."""

    _target: type = field(default_factory=lambda: VisitNewton)
    """Class to instantiate."""
    lr: float = 0.5
    """Part of the way to the minimum that a visit goes, the learning rate, in (0, 1]."""
    longest: float = math.inf
    """Length of a row's longest step, > 0."""

    def setup(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimiser."""
        return VisitNewton(params, lr=self.lr, longest=self.longest)


CORRECTION_OPTIMIZERS: dict[str, Callable[..., VisitNewtonConfig]] = {
    "camera_opt": partial(VisitNewtonConfig, longest=0.02),
    "exposure": partial(VisitNewtonConfig, longest=0.5),
}
"""Of a photograph's pose (radians, extents) and of its colours: what a first visit may do when little is known."""
