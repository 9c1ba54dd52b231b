"""The checkpoints of a run: finding the one to load, verifying that it is complete, reading and writing it.

A checkpoint is a zip archive with a checksum for each of its parts, so that truncation and changes are detected.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ns_support.errors import UserError
from ns_support.runs.safe_files import remove_drafts, replaced
from ns_support.terminal import warn

MODEL_FOLDER = "nerfstudio_models"
"""nerfstudio's name of the folder of a run's checkpoints. nerfstudio parses a step from every file name in it."""
_NAME = re.compile(r"step-(\d+)\.ckpt")
_PARTS = ("step", "pipeline")
_NAMED = 5
"""Maximum number of runs that a message names."""
_UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, TypeError)
"""What `torch.load` raises for a file that is not a checkpoint, or that it does not trust."""


class Checkpoint(NamedTuple):
    """A checkpoint by name; its contents have not been examined."""

    step: int
    path: Path


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a folder, the newest first; other files are ignored."""
    if not folder.is_dir():
        return []
    named = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((Checkpoint(int(match[1]), path) for match, path in named if match), reverse=True)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is complete, by the checksums of all its parts.

    PyTorch compresses nothing. An archive whose parts claim to be larger than the file is damaged, or made to fill the
    memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                return False
            return sum(part.file_size for part in parts) <= path.stat().st_size and archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError):
        # A damaged archive directory may claim an unknown encryption or compression.
        return False


def find_checkpoint(folder: Path, step: int | None = None) -> Path:
    """The checkpoint to load from a run.

    Args:
        folder: the run's folder, or that of its checkpoints.
        step: of the checkpoint; None: the newest complete one. A warning names a newer one that is damaged.

    Raises:
        UserError: there is no such folder or checkpoint, or none is complete.
    """
    if not folder.exists():
        raise UserError(f"The folder {folder} does not exist: there is no run to load a checkpoint from.")
    if folder.is_file():
        raise UserError(
            f"{folder} is a file; name the folder of a run or of its checkpoints ({MODEL_FOLDER}). "
            "Training goes on from a single file with --load-checkpoint."
        )
    found = checkpoints_in(folder) or checkpoints_in(folder / MODEL_FOLDER)
    if not found:
        raise UserError(f"There is no checkpoint (step-*.ckpt) in {folder}, nor in a folder {MODEL_FOLDER} in it.")
    if step is not None:
        named = [checkpoint for checkpoint in found if checkpoint.step == step]
        if not named:
            there = ", ".join(str(checkpoint.step) for checkpoint in found)
            raise UserError(f"There is no checkpoint of step {step} in {found[0].path.parent}: there is {there}.")
        found = named
    for checkpoint in found:
        if is_whole(checkpoint.path):
            if checkpoint != found[0]:
                warn(f"{found[0].path} is damaged. The newest checkpoint that is whole is loaded: {checkpoint.path}.")
            return checkpoint.path
    others = [] if step is None else [c for c in checkpoints_in(found[0].path.parent) if is_whole(c.path)]
    remedy = f" That of step {others[0].step} is whole." if others else " No other one is whole."
    raise UserError(f"The checkpoint {found[0].path} is damaged: it is cut off or was altered.{remedy}")


def find_config(path: Path) -> Path:
    """The config.yml of a run.

    Args:
        path: the file itself, the run's folder or that of its checkpoints, or a folder that contains a single run.

    Raises:
        UserError: there is none, or there are several; names them.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist; give a trained run's folder or its config.yml.")
    for folder in (path, path.parent) if path.name == MODEL_FOLDER else (path,):
        if (folder / "config.yml").is_file():
            return folder / "config.yml"
    found = sorted(path.rglob("config.yml"), key=lambda config: config.stat().st_mtime, reverse=True)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"There is no config.yml in {path}, nor in any folder below: give a trained run's folder.")
    names = ", ".join(str(config.parent) for config in found[:_NAMED])
    raise UserError(f"There are {len(found)} runs below {path}; give one of them, such as {names} (the newest first).")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU. No code in the file is executed.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of a nerfstudio training.
    """
    if not path.is_file():
        raise UserError(f"The checkpoint {path} {'is a folder' if path.is_dir() else 'does not exist'}.")
    if not is_whole(path):
        raise UserError(f"The checkpoint {path} is damaged: it is cut off or was altered.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        cause = " ".join(str(error).split(". ")[0].split())
        raise UserError(f"{path} can't be loaded as a checkpoint: {cause}.") from error
    _refuse_enormous(state, path)
    missing = [part for part in _PARTS if not isinstance(state, dict) or part not in state]
    if missing:
        raise UserError(f"{path} is no checkpoint of a nerfstudio training: it lacks {', '.join(missing)}.")
    return state


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a checkpoint's path before the refusal of what loads it.

    Args:
        path: the checkpoint's.

    Raises:
        UserError: the contents were refused; names the file.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _refuse_enormous(state: Any, path: Path) -> None:
    """Refuse tensors that repeat few numbers to a size larger than the file: a model would take memory for all."""
    todo, seen = [state], set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, (list, tuple)):
            todo += value
        elif isinstance(value, torch.Tensor) and value.numel() * value.element_size() > path.stat().st_size:
            raise UserError(
                f"{path} has a tensor of the shape {list(value.shape)}, larger than the file: it was altered. Load the "
                "checkpoint before it with --load-step, or ask for the file again."
            )


def write_checkpoint(state: dict[str, Any], path: Path, only_latest: bool) -> None:
    """Write a checkpoint; older ones are removed only after it is complete.

    Args:
        state: the contents, as returned by `read_checkpoint`.
        path: the file, in the folder of a run's checkpoints. The temporary file is in the parent folder.
        only_latest: whether the other checkpoints in the folder are then removed.

    Raises:
        UserError: it can't be written; the others still exist.
    """
    run = path.parent.parent
    if run.is_dir():
        remove_drafts(run)
    # Through a Python file object, because torch's own writer reports a full disk as an unexpected position.
    with replaced(path, folder=run) as draft, draft.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
    if only_latest:
        for checkpoint in checkpoints_in(path.parent):
            if checkpoint.path != path:
                checkpoint.path.unlink(missing_ok=True)
