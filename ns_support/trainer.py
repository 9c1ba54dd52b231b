"""Trainer for data-parallel runs: gradients, pausing and stopping are synchronised; only rank 0 logs, evaluates, saves.

Nothing is lost either: a checkpoint is written whole or not at all, a signal ends training with a checkpoint, and a
resumed run continues where its checkpoint stands or says why it can't.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal

import torch
import tyro
import yaml
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from ns_support.adam import stepping_together
from ns_support.auto_data import AutoDataParserConfig
from ns_support.commands.launching import prepare_launch
from ns_support.concurrency.processes import Processes
from ns_support.corrections.settings import PHOTOGRAPH_GROUPS
from ns_support.errors import UserError
from ns_support.help import documented
from ns_support.runs.progress import TrainingProgress, install
from ns_support.runs.safe_files import FULL, replaced, unwritable
from ns_support.runs.saved_runs import naming, read_checkpoint, write_checkpoint
from ns_support.runs.sizes import keep_sizes
from ns_support.runs.start import check_resumable, check_run, free_timestamp, load_states, resume_path
from ns_support.runs.stopping import stop_signals, stop_signals_of_worker
from ns_support.runs.summary import data_facts, device_facts, say_farewell
from ns_support.runs.trained_on import KEY, moved, normalization_beside, trained_on
from ns_support.runs.watch import Watch
from ns_support.terminal import TERMINAL, say, warn


@documented
@dataclass
class SharedTrainerConfig(TrainerConfig):
    """Configuration of a training by one or more processes (`--machine.num-devices`)."""

    _target: type = field(default_factory=lambda: SharedTrainer)
    """Class to instantiate."""
    prompt: tyro.conf.Suppress[str | None] = None
    """Not used."""
    minutes_per_save: float = 10.0
    """Save a checkpoint when so many minutes have passed since the last one, > 0, however few steps that is."""
    resume_on_other_data: bool = False
    """Resume even if the photographs or their cameras are not those that the checkpoint was trained on."""
    print_config: bool = False
    """Print all settings at the start. They are in the run's config.yml in any case."""

    def set_timestamp(self) -> None:
        """Name the run's folder, the first thing that `ns-train` does with a configuration."""
        chosen: bool = self.timestamp != "{timestamp}"  # type: ignore[has-type]
        super().set_timestamp()
        wanted = self.get_base_dir()
        self.timestamp = free_timestamp(self, chosen)
        if chosen and self.get_base_dir() != wanted:
            say(f"{wanted} holds a trained model, which stays. This run goes to {self.get_base_dir()}.")

    def print_to_terminal(self) -> None:
        """Check everything that can be checked before the data are loaded, then say what is about to happen.

        Raises:
            UserError: the training can't begin (`check_run`).
        """
        parser = self.pipeline.datamanager.dataparser
        if isinstance(parser, AutoDataParserConfig):
            parser.photos.fallback = self.output_dir
        check_run(self)
        if self.print_config:
            TERMINAL.print(self, markup=False)
        say(f"{self.method_name} on {self.pipeline.datamanager.data or 'its data'}, into {self.get_base_dir()}")

    def save_config(self) -> None:
        """Write config.yml, the last thing that `ns-train` does before it starts processes."""
        with replaced(self.get_base_dir() / "config.yml") as draft:
            draft.write_text(yaml.dump(self), "utf8")
        prepare_launch()


class SummedOptimizers(Optimizers):
    """Before the optimisers step, gradients become the sums of every process's, and the mean over accumulated steps."""

    averages = False
    """Whether gradients that were accumulated over several steps are averaged. nerfstudio adds them up."""
    accumulated = 0
    """How many steps' gradients there are."""

    def zero_grad_some(self, param_groups: list[str]) -> None:
        """Forget the gradients of some parameter groups."""
        super().zero_grad_some(param_groups)
        if param_groups:
            self.accumulated = 0

    def optimizer_scaler_step_some(self, grad_scaler: Any, param_groups: list[str]) -> None:
        """Sum the gradients of some parameter groups, then step."""
        self.accumulated += 1
        parameters = [parameter for group in param_groups for parameter in self.parameters[group]]
        Processes.current().add_gradients(parameters)
        if self.averages and self.accumulated > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad /= self.accumulated
        with stepping_together(self.optimizers[group] for group in param_groups):
            super().optimizer_scaler_step_some(grad_scaler, param_groups)


class SharedTrainer(Trainer):
    """`Trainer`, several of which train one model, one in each process.

    - Gradients are summed before each optimiser step, and averaged over the steps that the pipeline names
      (`SummedOptimizers`).
    - What is logged belongs to the batch of all processes.
    - Process 0 alone talks, evaluates and writes; when it pauses or stops, all do.
    - Ctrl+C and SIGTERM end training after the step at hand, with a checkpoint (`ns_support.runs.stopping`).
    - A checkpoint's name is the last step that it holds. One is written by the clock too.
    """

    config: SharedTrainerConfig
    progress: TrainingProgress
    optimizers: SummedOptimizers

    def __init__(self, config: SharedTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        self.processes = Processes.current()
        self._stop_wanted = self._stop_agreed = False
        self._watch: Watch | None = None
        self._leaving = self._save_is_due = False
        self._begun = self._last_save = monotonic()
        self.last_step = -1
        """The last step that is done."""
        self.saved: Path | None = None
        """The newest checkpoint that this run has written."""
        with _quiet():
            super().__init__(config, local_rank, world_size)
        if self.processes.rank > 0:  # which nobody could resume: they wait for process 0
            self.training_state = "training"

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Set up pipeline, optimisers, callbacks and, in process 0, viewer and writers; say what was found."""
        data = self.config.pipeline.datamanager
        resumes = self.config.load_dir is not None or self.config.load_checkpoint is not None
        if hasattr(data, "resumes"):
            data.resumes = resumes
        path = resume_path(self.config)
        if path is not None:
            keep_sizes(self.config.pipeline.model, path)
        if resumes and not self.config.resume_on_other_data and isinstance(data.dataparser, AutoDataParserConfig):
            data.dataparser.photos.must_exist = True
        with _quiet():
            super().setup(test_mode)
        self._watch = Watch(self.checkpoint_dir, self.grad_scaler.is_enabled())
        self.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self._after_step))
        self.last_step = self._start_step - 1
        self.progress = TrainingProgress(self._start_step, self.config.max_num_iterations)
        if self.config.logging.local_writer.enable:
            install(self.progress)
        self._say_what_begins()

    def _say_what_begins(self) -> None:
        config, first = self.config, self._start_step
        say(data_facts(self.pipeline.datamanager))
        say(f"{device_facts(self.device)} {self.pipeline.describe()}")
        if first > 0:
            say(f"Resuming at step {first:,}, {config.max_num_iterations:,} more.")
        else:
            length = self.pipeline.describe_length(config.max_num_iterations)
            say(f"{config.max_num_iterations:,} steps. {length}".rstrip())
        say(
            f"Saved every {config.steps_per_save:,} steps and every {config.minutes_per_save:g} minutes. "
            "Ctrl+C stops after the step at hand, and saves."
        )
        if self.viewer_state is not None and hasattr(self.viewer_state, "viewer_info"):
            say("\n".join(self.viewer_state.viewer_info))

    def _load_checkpoint(self) -> None:
        """Go on from the checkpoint that the configuration names, if it names one.

        Raises:
            UserError: it is damaged, of another method, or was trained on other data.
        """
        path = resume_path(self.config)
        if path is None:
            return
        state = read_checkpoint(path)
        check_resumable(state, path, self.config)
        if not self._is_of_these_data(state, path):
            self._begin_corrections_anew(state)
        # The viewer is already there, and must not draw a model that is half loaded.
        with self.train_lock, naming(path):
            self._start_step = state["step"] + 1
            self.pipeline.load_pipeline(state["pipeline"], state["step"])
            load_states(self.optimizers, state["optimizers"])
            if self.config.load_scheduler:
                self.optimizers.load_schedulers(state.get("schedulers", {}))
            if state.get("scalers"):
                self.grad_scaler.load_state_dict(state["scalers"])

    def _begin_corrections_anew(self, state: dict[str, Any]) -> None:
        """Take out of a checkpoint what it knows of photographs that are not those of now."""
        for name, value in self.pipeline.model.per_photograph().items():
            if f"_model.{name}" in state["pipeline"]:
                state["pipeline"][f"_model.{name}"] = value.detach().clone()
        for group in PHOTOGRAPH_GROUPS:
            state["optimizers"].pop(group, None)

    def _is_of_these_data(self, state: dict[str, Any], path: Path) -> bool:
        before = state.get(KEY) or normalization_beside(path)
        difference = None if before is None else moved(before, trained_on(self.pipeline.datamanager))
        if difference is None:
            return True
        sentence = f"The data are not those that {path} was trained on: {difference}."
        if not self.config.resume_on_other_data:
            raise UserError(f"{sentence} Give the same data, or --resume-on-other-data True to go on all the same.")
        warn(sentence)
        return False

    def setup_optimizers(self) -> Optimizers:
        """The configured optimisers, stepping on the gradients of all processes."""
        return SummedOptimizers(self.config.optimizers.copy(), self.pipeline.get_param_groups())

    def train(self) -> None:
        """Train to the end."""
        self._begun = self._last_save = monotonic()
        signals = stop_signals if self.processes.size == 1 else stop_signals_of_worker
        try:
            with _quiet(), signals(self._stop_by_signal):
                super().train()
        except KeyboardInterrupt:
            self.progress.stop()
            where = "Nothing had been saved" if self.saved is None else f"The newest checkpoint is {self.saved}"
            say(f"Stopped at once. {where}.")
            raise
        except OSError as error:  # of a log; a checkpoint's has become a sentence already
            if error.errno not in FULL:
                raise
            raise UserError(f"Training stopped: {unwritable(self.base_dir, error)}") from error
        finally:
            self.progress.stop()
        self._stop_wanted = self._stop_agreed = False

    def _stop_by_signal(self) -> bool:
        waits = self.training_state != "completed"
        self._leaving = self.stop_training = True
        return waits

    def _after_step(self, step: int) -> None:
        """The last of the callbacks after a step, under the lock."""
        self.last_step = step
        if monotonic() - self._last_save > 60 * self.config.minutes_per_save:
            self._save_is_due = True
        if self._save_is_due and not self._averages_after(step):
            self.save_checkpoint(step)

    def _averages_after(self, step: int) -> bool:
        """Whether gradients are left over after a step, for a later one: they are not in a checkpoint."""
        return (step + 1) % (self.pipeline.steps_averaged or 1) != 0

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write a checkpoint, whole or not at all; while gradients are being averaged, once that is done.

        Args:
            step: the last one that is done.

        Raises:
            UserError: it can't be written, at the end of training (before, that is a warning); or what would be
                written is not finite.
        """
        if self.training_state != "completed" and self._averages_after(step):
            self._save_is_due = True
            return
        if self._watch is not None:
            self._watch.check_parameters(self.pipeline.model.named_parameters())
        self._last_save, self._save_is_due = monotonic(), False
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        if path == self.saved:
            return
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            "method_name": self.config.method_name,
            KEY: trained_on(self.pipeline.datamanager),
        }
        try:
            write_checkpoint(state, path, self.config.save_only_latest_checkpoint)
        except UserError as error:
            if self.training_state == "completed":
                raise
            warn(f"{error} Training goes on.")
        else:
            self.saved = path

    def _after_train(self) -> None:
        """Save, say how it went, and keep the viewer open if there is one."""
        self.training_state = "completed"
        self.progress.stop()
        seconds = monotonic() - self._begun
        if self.last_step >= self._start_step:
            self.save_checkpoint(self.last_step)
        writer.write_out_storage()
        for callback in self.callbacks:
            callback.run_callback_at_location(step=self.last_step, location=TrainingCallbackLocation.AFTER_TRAIN)
        if self.processes.rank > 0:
            return
        if self.last_step >= self._start_step:
            say_farewell(self, self.last_step + 1 - self._start_step, seconds)
        else:
            say("Stopped before the first step: there is nothing to save.")
        if self.viewer_state is not None and not self.config.viewer.quit_on_train_completion and not self._leaving:
            self._train_complete_viewer()

    def _train_complete_viewer(self) -> None:
        """Keep the viewer open until a signal comes."""
        if hasattr(self.viewer_state, "training_complete"):
            self.viewer_state.training_complete()
        say("The viewer stays open; Ctrl+C leaves.")
        while not self._leaving:
            sleep(0.05)

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
        """One step; what comes back to be logged is the sum of the losses, and the mean of the metrics, of all."""
        steps = self.pipeline.steps_averaged
        if steps is not None:
            self.optimizers.averages = True
            self.gradient_accumulation_steps.update(dict.fromkeys(self.optimizers.parameters, steps))
        loss, losses, metrics = super().train_iteration(step)
        if self._watch is not None:
            self._watch.follow(loss, step)
            self._watch.look(self.pipeline.model.parameters_of_scene())
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
def _quiet() -> Iterator[None]:
    """Keep nerfstudio's console silent: what of it matters to a user, `SharedTrainer` says in its own words."""
    before = CONSOLE.quiet
    CONSOLE.quiet = True
    try:
        yield
    finally:
        CONSOLE.quiet = before
