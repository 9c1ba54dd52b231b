"""Checks at the start of `ns-train`, before anything is printed, created or loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.engine.optimizers import Optimizers

from ns_support.corrections.settings import OPTIONAL_GROUPS
from ns_support.data.checks import check_data_folder, parser_name
from ns_support.errors import UserError
from ns_support.runs.safe_files import remove_drafts, unwritable
from ns_support.runs.saved_runs import checkpoints_in, find_checkpoint, read_checkpoint

if TYPE_CHECKING:
    from ns_support.trainer import SharedTrainerConfig


def check_run(config: SharedTrainerConfig) -> None:
    """Check everything that a training needs, and make its folder.

    Raises:
        UserError: the settings, the device, the data, the checkpoint to resume from or the output folder are unusable;
            names the option and its valid values.
    """
    if config.max_num_iterations < 1:
        raise UserError(f"--max-num-iterations must be at least 1, got {config.max_num_iterations}.")
    device = config.machine.device_type
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--machine.device-type is cuda, but PyTorch finds no CUDA device here. Leave it out.")
    if device not in ("cpu", "cuda"):
        raise UserError(f"--machine.device-type must be cpu or cuda, got {device}.")
    check_optimizers(config.optimizers)
    config.pipeline.check()
    check_data(config.pipeline.datamanager)
    path = resume_path(config)
    if path is not None:
        check_resumable(read_checkpoint(path), path, config)
    make_folder(config.get_base_dir())
    clean_up(config)


def check_optimizers(optimizers: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse settings that no optimiser takes.

    Args:
        optimizers: nerfstudio's, by parameter group.

    Raises:
        UserError: a learning rate, epsilon, weight decay or beta is out of its range; names the option.
    """
    for group, parts in optimizers.items():
        for name in ("lr", "eps", "weight_decay"):
            value = getattr(parts["optimizer"], name, 0.0)
            if not 0 <= value < math.inf:
                raise UserError(f"--optimizers.{group}.optimizer.{name} must be finite and at least 0, got {value}.")
        betas = getattr(parts["optimizer"], "betas", ())
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"--optimizers.{group}.optimizer.betas must be in [0, 1), got {betas}.")


def clean_up(config: SharedTrainerConfig) -> None:
    """Remove what killed processes left half-written in this run, its siblings and the run that is resumed."""
    runs = {folder for folder in config.get_base_dir().parent.glob("*") if folder.is_dir()}
    if config.load_dir is not None:
        runs |= {config.load_dir, config.load_dir.parent}
    for run in runs:
        remove_drafts(run)


def check_data(datamanager: Any) -> None:
    """Refuse a data folder that does not exist, is empty or has an unknown format.

    Args:
        datamanager: its configuration.

    Raises:
        UserError: as for `check_data_folder` and `parser_name`.
    """
    path = Path(datamanager.data or datamanager.dataparser.data)
    check_data_folder(path)
    parser_name(datamanager.dataparser, path)


def resume_path(config: SharedTrainerConfig) -> Path | None:
    """The checkpoint to resume from; None for a new training.

    Raises:
        UserError: the configured checkpoint does not exist.
    """
    if config.load_dir is not None:
        return find_checkpoint(config.load_dir, config.load_step)
    if config.load_step is not None:
        raise UserError(f"--load-step {config.load_step} needs --load-dir, the folder of the run to go on with.")
    if config.load_checkpoint is not None and not config.load_checkpoint.is_file():
        what = "is a folder: give it as --load-dir" if config.load_checkpoint.is_dir() else "does not exist"
        raise UserError(f"--load-checkpoint {config.load_checkpoint} {what}.")
    return config.load_checkpoint


def check_resumable(state: dict[str, Any], path: Path, config: SharedTrainerConfig) -> None:
    """Refuse a checkpoint of another method, recognised by the optimisers that every training of a method has.

    Raises:
        UserError: names the checkpoint, and its method if the checkpoint contains it.
    """
    if "optimizers" not in state:
        raise UserError(f"{path} holds no optimisers: it can be looked at, and not trained further.")
    there, wanted = set(state["optimizers"]) - OPTIONAL_GROUPS, set(config.optimizers) - OPTIONAL_GROUPS
    if there != wanted:
        method = state.get("method_name")
        refused = f"{path} is not a checkpoint of {config.method_name}."
        if method:
            raise UserError(f"{refused} It is one of {method}: `ns-train {method} --load-dir ...` goes on with it.")
        raise UserError(
            f"{refused} It holds {', '.join(sorted(there))}; {config.method_name} trains {', '.join(sorted(wanted))}."
        )


def load_states(optimizers: Optimizers, states: Mapping[str, Any]) -> None:
    """Load what a checkpoint says of the optimisers. PyTorch takes tensors of any shape, of which kernels then read.

    Args:
        optimizers: of the parameters as they are in the checkpoint.
        states: the checkpoint's, by parameter group.

    Raises:
        UserError: a moment is not of its parameter's shape, or another tensor has not a row for each of its rows.
    """
    try:
        optimizers.load_optimizers(states)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The states of its optimisers are damaged: {' '.join(str(error).split())}.") from error
    for group, optimizer in optimizers.optimizers.items():
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if not isinstance(value, torch.Tensor) or value.ndim == 0:
                    continue
                compared = None if name.startswith("exp_avg") else 1
                if value.shape[:compared] != parameter.shape[:compared]:
                    raise UserError(
                        f"The optimiser of {group} has {name} of the shape {list(value.shape)} for parameters of the "
                        f"shape {list(parameter.shape)}: it was altered."
                    )


def make_folder(folder: Path) -> None:
    """Make a run's folder, and check that it is writable.

    Raises:
        UserError: it is not; names the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{unwritable(folder, error)} Give another --output-dir.") from error


def free_timestamp(config: SharedTrainerConfig, chosen: bool) -> str:
    """A timestamp for the run's folder that does not belong to another run.

    With `--load-config`, a training gets a finished run's configuration including its timestamp, and would remove that
    run's model on its first save. Only a run that is being resumed may continue in its own folder.

    Args:
        config: with a timestamp.
        chosen: whether the timestamp was given, as opposed to generated from the current time.

    Returns:
        The configuration's timestamp if that folder is free, otherwise one of the current time.
    """
    before = config.timestamp
    folder = config.get_checkpoint_dir()
    resumed = config.load_dir or (config.load_checkpoint and config.load_checkpoint.parent)
    own = chosen and resumed is not None and folder.resolve() in (resumed.resolve(), (resumed / folder.name).resolve())
    if own or not (checkpoints_in(folder) if chosen else config.get_base_dir().exists()):
        return before
    now = datetime.now().strftime("%Y-%m-%d_%H%M%S")
    tries = 1
    try:
        while True:
            config.timestamp = now if tries == 1 else f"{now}-{tries}"
            if not config.get_base_dir().exists():
                return config.timestamp
            tries += 1
    finally:
        config.timestamp = before
