"""nerfstudio's trainer for any number of processes: what they have to do together, and what only one of them should."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import sleep
from typing import Any, Literal

import torch
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from ns_support.launching import prepare_launch
from ns_support.processes import Processes


@dataclass
class SharedTrainerConfig(TrainerConfig):
    """Configuration of a training by one or more processes (`--machine.num-devices`)."""

    _target: type = field(default_factory=lambda: SharedTrainer)
    """Class to instantiate."""

    def save_config(self) -> None:
        """Write config.yml, the last thing that `ns-train` does before it starts processes."""
        super().save_config()
        prepare_launch()


class SummedOptimizers(Optimizers):
    """Before the optimisers step, gradients become the sums of every process's."""

    def optimizer_scaler_step_some(self, grad_scaler: Any, param_groups: list[str]) -> None:
        """Sum the gradients of some parameter groups, then step."""
        Processes.current().add_gradients([p for group in param_groups for p in self.parameters[group]])
        super().optimizer_scaler_step_some(grad_scaler, param_groups)


class SharedTrainer(Trainer):
    """`Trainer`, several of which train one model, one in each process.

    - Gradients are summed before each optimiser step (`SummedOptimizers`).
    - What is logged belongs to the batch of all processes.
    - Process 0 alone talks, evaluates and writes; when it pauses or stops, all do.
    """

    def __init__(self, config: TrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        self.processes = Processes.current()
        self._stop_wanted = self._stop_agreed = False
        with _quiet(self.processes.rank > 0):
            super().__init__(config, local_rank, world_size)
        if self.processes.rank > 0:  # which nobody could resume: they wait for process 0
            self.training_state = "training"

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Set up pipeline, optimisers, callbacks and, in process 0, viewer and writers."""
        data = self.config.pipeline.datamanager
        if hasattr(data, "resumes"):
            data.resumes = self.config.load_dir is not None or self.config.load_checkpoint is not None
        with _quiet(self.processes.rank > 0):
            super().setup(test_mode)

    def _load_checkpoint(self) -> None:
        # The viewer is already there, and must not draw a model that is half loaded.
        with self.train_lock:
            super()._load_checkpoint()

    def setup_optimizers(self) -> Optimizers:
        """The configured optimisers, stepping on the gradients of all processes."""
        return SummedOptimizers(self.config.optimizers.copy(), self.pipeline.get_param_groups())

    def train(self) -> None:
        """Train to the end."""
        with _quiet(self.processes.rank > 0):
            super().train()
        self._stop_wanted = self._stop_agreed = False

    @property
    def stop_training(self) -> bool:
        """Whether to stop before the next step. Set by anyone; true once all processes know of it.

        Only the end of training takes it back: `train` sets it to False once the viewer has the photographs, by when
        someone may have pressed the button.
        """
        return self._stop_agreed

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        self._stop_wanted |= value
        self._stop_agreed |= value and self.processes.size == 1

    def train_iteration(self, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """One step; what comes back to be logged is the sum of the losses, and the mean of the metrics, of all.

        The losses are those of the step, whether or not more steps follow before the optimisers' next one.
        """
        loss, losses, metrics = super().train_iteration(step)
        steps = getattr(self.pipeline, "steps_averaged", 1)
        if steps > 1:
            loss, losses = loss * steps, {name: value * steps for name, value in losses.items()}
        if self.processes.size > 1 and step % self.config.logging.steps_per_log == 0:
            device = self.pipeline.device
            losses = _combined(losses, self.processes, device, 1.0)
            metrics = _combined(metrics, self.processes, device, 1.0 / self.processes.size)
            loss = functools.reduce(torch.add, losses.values())
        return loss, losses, metrics

    def eval_iteration(self, step: int) -> None:
        """Evaluate in process 0; the others would find the same."""
        if self.processes.rank == 0:
            super().eval_iteration(step)

    def _update_viewer_state(self, step: int) -> None:
        # Called after every step, outside of the lock, by every process.
        super()._update_viewer_state(step)
        if self.processes.size > 1:
            # Here and not at the top of the next step, where nerfstudio pauses: the others would start that step.
            while self.training_state == "paused" and not self._stop_wanted:
                sleep(0.01)
            device = self.pipeline.device
            wanted = self.processes.sum(torch.tensor(int(self._stop_wanted), device=device))
            self._stop_agreed = bool(wanted)


def _combined(
    scalars: dict[str, Tensor], processes: Processes, device: torch.device, weight: float
) -> dict[str, Tensor]:
    """Weighted sums over all processes; the keys and their order must agree."""
    values = torch.tensor([float(torch.as_tensor(value).detach()) for value in scalars.values()], device=device)
    total = processes.sum(values).cpu() * weight
    return dict(zip(scalars, total.unbind(), strict=True))


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Keep nerfstudio's console silent: what it says, process 0 has said."""
    before = CONSOLE.quiet
    CONSOLE.quiet = before or quiet
    try:
        yield
    finally:
        CONSOLE.quiet = before
