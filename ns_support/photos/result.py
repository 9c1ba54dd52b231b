"""Where poses are kept: folders that are whole or not there, and that say what they were made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import sleep
from typing import IO, Any

from ns_support.errors import UserError
from ns_support.photos.cameras import Shot
from ns_support.photos.listing import RECORD
from ns_support.runs.safe_files import replaced, unwritable
from ns_support.terminal import say

try:
    import fcntl as _fcntl
except ImportError:  # on Windows
    _fcntl = None  # type: ignore[assignment]

_VERSION = 1
_SUFFIX = "-colmap"
_PART, _OLD = ".part", ".old"
"""Endings of the folders of unfinished and of replaced results."""
_LOCK = "lock"
_CHUNK = 1 << 20


@dataclass
class FileState:
    """What a file was like: equal size and time, or else equal contents, count as unchanged."""

    size: int
    modified: int
    digest: str


@dataclass
class Record:
    """What a result was made of, and what came of it; `photos.json` in its folder.

    Attributes:
        source: name of the folder or video.
        settings: that the result depends on.
        files: photographs and masks (with a prefix), or the video.
        shots: the prepared photographs; None before they are.
        broken: sentences about those that could not be read.
        result: registered and missing photographs, points, error; None before the end.
    """

    source: str
    settings: dict[str, Any]
    files: dict[str, FileState]
    shots: list[Shot] | None = None
    broken: list[str] = field(default_factory=list)
    result: dict[str, Any] | None = None
    version: int = _VERSION

    def write(self, folder: Path) -> None:
        """Write to a folder, whole or not at all."""
        with replaced(folder / RECORD) as draft:
            draft.write_text(json.dumps(asdict(self), indent=1), "utf8")


def read_record(folder: Path) -> Record | None:
    """The record of a folder; None if there is none that this version can read."""
    try:
        entries = json.loads((folder / RECORD).read_text("utf8"))
        if entries["version"] != _VERSION:
            return None
        entries["files"] = {name: FileState(**state) for name, state in entries["files"].items()}
        if entries["shots"] is not None:
            entries["shots"] = [Shot(**shot) for shot in entries["shots"]]
        return Record(**entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a finished result with its model."""
    record = read_record(folder)
    return (
        record is not None
        and record.result is not None
        and (folder / "sparse/0/cameras.bin").is_file()
        and (folder / "images").is_dir()
    )


def file_states(files: dict[str, Path], known: dict[str, FileState] | None = None) -> dict[str, FileState]:
    """The state of files by name; contents are read only where a known state does not answer.

    Raises:
        UserError: a file can't be read.
    """
    found = {}
    for name, path in files.items():
        before = (known or {}).get(name)
        try:
            state = path.stat()
            if before is not None and (before.size, before.modified) == (state.st_size, state.st_mtime_ns):
                found[name] = before
            else:
                found[name] = FileState(state.st_size, state.st_mtime_ns, _digest(path))
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
    return found


def differences(before: dict[str, FileState], now: dict[str, FileState]) -> str:
    """What changed, in a few words; empty if nothing did."""
    gone, new = before.keys() - now.keys(), now.keys() - before.keys()
    changed = {
        name
        for name in before.keys() & now.keys()
        if (before[name].size, before[name].digest) != (now[name].size, now[name].digest)
    }
    words = [
        f"{len(names)} {what} ({min(names)}{', ...' if len(names) > 1 else ''})"
        for names, what in ((new, "new"), (gone, "gone"), (changed, "changed"))
        if names
    ]
    return ", ".join(words)


def _digest(path: Path) -> str:
    sums = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            sums.update(data)
    return sums.hexdigest()


def result_name(source: Path) -> str:
    """The name of a source's result: `clip-colmap` for `clip.mp4`, `photos-colmap` for `photos/`."""
    path = Path(os.path.abspath(source))
    return (path.name if path.is_dir() or not path.suffix else path.stem) + _SUFFIX


def result_folder(source: Path, chosen: Path | None, fallback: Path) -> Path:
    """Where the result of a source is, or will be.

    Args:
        source: the folder of photographs or the video.
        chosen: by the user.
        fallback: folder for the result's folder if none can be made beside the source.
    """
    if chosen is not None:
        return chosen
    beside = Path(os.path.abspath(source)).parent / result_name(source)
    elsewhere = fallback / result_name(source)
    if is_whole(beside) or (not is_whole(elsewhere) and os.access(beside.parent, os.W_OK)):
        return source.parent / result_name(source) if source.name not in ("", "..") else beside
    return elsewhere


def work_folder(result: Path) -> Path:
    """Where a result is made, beside its place."""
    return result.with_name(result.name + _PART)


@contextmanager
def locked(result: Path, option: str) -> Iterator[Path]:
    """The work folder of a result, for one process at a time; others wait.

    The result's folder must be free or one of this package. Where another process has made the result meanwhile, the
    work folder is empty.

    Args:
        result: the result's folder.
        option: what names it on the command line.

    Raises:
        UserError: the folder can't be made, or is somebody else's.
    """
    if result.exists() and not (result.is_dir() and ((result / RECORD).is_file() or not any(result.iterdir()))):
        raise UserError(
            f"{result}, where the poses would go, exists and was not made by this package. Train on it (--data "
            f"{result}) if it is a COLMAP model of these photographs; or else move it away, or name another folder "
            f"with {option}."
        )
    work = work_folder(result)
    try:
        file = _acquired(work)
    except OSError as error:
        raise UserError(f"{unwritable(work, error)} Name another folder with {option}.") from error
    try:
        yield work
    finally:
        if work.is_dir() and {path.name for path in work.iterdir()} <= {_LOCK}:
            shutil.rmtree(work, ignore_errors=True)
        if file is not None:
            file.close()


def _acquired(work: Path) -> IO[str] | None:
    """The open lock of a work folder, which is made; None where there are no locks (Windows, some file systems)."""
    said = False
    while True:
        work.mkdir(parents=True, exist_ok=True)
        if _fcntl is None:
            return None
        try:
            file = (work / _LOCK).open("a")
        except FileNotFoundError:  # another process has just finished the folder
            continue
        try:
            _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
            if os.path.isfile(work / _LOCK) and os.path.samestat(os.fstat(file.fileno()), os.stat(work / _LOCK)):
                return file
            file.close()
        except BlockingIOError:
            file.close()
            if not said:
                say(f"Another process is at work in {work}: waiting for it.")
                said = True
            sleep(0.5)
        except OSError:
            return file


def finish(work: Path, result: Path) -> None:
    """Put a finished work folder in the place of the result; an older result is removed.

    Raises:
        UserError: it can't be renamed.
    """
    old = result.with_name(result.name + _OLD)
    try:
        (work / _LOCK).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        if result.exists():
            os.replace(result, old)
        os.replace(work, result)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{unwritable(result, error)} The poses are in {work}.") from error


def empty(work: Path) -> None:
    """Remove what an unfinished run on other photographs left, except the lock."""
    for path in work.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
