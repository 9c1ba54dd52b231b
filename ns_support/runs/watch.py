"""Stops a training whose numbers have become senseless, before a checkpoint of them replaces a sound one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ns_support.errors import UserError
from ns_support.runs.saved_runs import checkpoints_in
from ns_support.terminal import warn

_EVERY = 100
"""Steps between two looks at the losses on a GPU, each of which waits for the GPU."""
_PATIENCE = 100
"""Steps one after the other whose loss may overflow in mixed precision: nerfstudio's scaler leaves them out."""
_FIRST = 20
"""Steps in which at least one ray of a scene in sight meets something."""
_FEW = 0.01
"""Fraction of a parameter's values that may be not finite: the caster leaves out Gaussians that are."""


class Watch:
    """Follows the loss of every step, and looks at the parameters before they are saved.

    Args:
        folder: of the run's checkpoints.
        scales: whether a gradient scaler leaves out steps whose gradients are not finite.
    """

    def __init__(self, folder: Path, scales: bool = False) -> None:
        self._folder, self._patience = folder, _PATIENCE if scales else 1
        self._bad: Tensor | None = None
        self._latest = -1
        self._looks = 0
        self._met: Tensor | None = None

    def follow(self, loss: Tensor | float, step: int) -> None:
        """Record the loss of a step.

        Args:
            loss: a scalar, on any device.
            step: which step.

        Raises:
            UserError: it is not finite, nor were those before it for as long as they may be.
        """
        value = torch.as_tensor(loss).detach()
        bad = (value - value) != 0  # infinity less infinity is NaN; `isfinite` is five launches on a GPU
        # How many in a row: counted where the loss is, so that no step waits for the GPU.
        if self._bad is None:
            self._bad = bad
        elif self._patience == 1:
            self._bad = self._bad | bad
        else:
            self._bad = torch.where(self._bad < self._patience, bad * (self._bad + 1), self._bad)
        self._latest = step
        if bad.device.type == "cpu" or step % _EVERY == 0:
            self.check()

    def look(self, parameters: Iterable[nn.Parameter]) -> None:
        """Look at the gradients of the first steps; a warning says if there were none, since no ray met anything.

        Args:
            parameters: of the scene, after a step.
        """
        if self._looks == _FIRST:
            return
        self._looks += 1
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        values = [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
        if values:
            met = torch.stack(torch._foreach_norm(values, 1)).any()  # a few launches on a GPU, for all together
            if met.device.type == "cpu" and bool(met):
                self._looks = _FIRST
                return
            self._met = met if self._met is None else self._met | met
        if self._looks == _FIRST and (self._met is None or not bool(self._met)):
            warn(
                f"Nothing was learnt in the first {_FIRST} steps: no ray met anything, and the pictures are empty. "
                "Look at the cameras' poses and their scale, and at the near plane and the step size if they were set."
            )

    def check(self) -> None:
        """Look at the losses so far.

        Raises:
            UserError: as for `follow`.
        """
        if self._bad is not None and int(self._bad) >= self._patience:
            raise UserError(self._sentence("the loss is not a finite number any more"))

    def check_parameters(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Look at what is about to be saved; a warning counts the values that are not finite if they are few.

        Args:
            parameters: with their names.

        Raises:
            UserError: of one of them, more than a hundredth is not finite.
        """
        self.check()
        for name, parameter in parameters:
            broken = int((~torch.isfinite(parameter.detach())).sum())
            if broken > _FEW * parameter.numel():
                what = f"{broken:,} of the {parameter.numel():,} numbers in {name} are not finite any more"
                raise UserError(self._sentence(what))
            if broken:
                warn(f"{broken:,} of the {parameter.numel():,} numbers in {name} are not finite.")

    def _sentence(self, what: str) -> str:
        found = checkpoints_in(self._folder)
        saved = f"{found[0].path} is from before" if found else "Nothing had been saved before"
        return (
            f"Training stopped at step {self._latest:,}: {what}, and nothing of that was saved. {saved}. Train with "
            "lower learning rates, or look for values in the data that are out of all proportion."
        )
