"""Atomic writing of files: completely or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ns_support.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, which removes no file that is open
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".part"
"""Suffix of the names of incomplete files."""
_LONG = 600.0
"""Time without a change (s) after which a temporary file that nobody has locked is left over."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, an exhausted quota and a file that exceeds the maximum size."""


@contextmanager
def replaced(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Write a file under a temporary name, and rename it once it is complete and on the disk.

    If anything goes wrong before that, even if the process is killed, `path` is unchanged. Missing folders are made.

    Args:
        path: the file to write; an existing one is replaced.
        folder: of the temporary file, on the same file system as `path`; None: the same folder.

    Yields:
        The temporary file's path, to be written by the caller. It has another suffix than `path`.

    Raises:
        UserError: the file can't be written (no space, no permission, a folder in its place); names the file and the
            cause.

    Example:
        >>> with replaced(Path("scene.ply")) as draft:  # doctest: +SKIP
        ...     draft.write_bytes(b"ply ...")
    """
    draft = (folder or path.parent) / f".{path.name}.{os.getpid()}{_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.parent.mkdir(parents=True, exist_ok=True)
        with _held(draft):
            try:
                yield draft
                _flush(draft)
                os.replace(draft, path)
                _flush(path.parent)
            finally:
                draft.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(unwritable(path, error)) from error


def unwritable(path: Path, error: OSError) -> str:
    """The message for a file or folder that can't be written."""
    free = f"; {_free(path)} free there" if error.errno in FULL else ""
    cause = f"{error.filename} is not a folder" if isinstance(error, FileExistsError) else error.strerror or error
    return f"{path} can't be written: {cause}{free}. What was there before is unchanged."


def remove_drafts(folder: Path) -> None:
    """Remove the temporary files that `replaced` left in a folder when its process was killed."""
    for draft in folder.glob(f".*{_SUFFIX}"):
        process = draft.name.removesuffix(_SUFFIX).rpartition(".")[2]
        with suppress(OSError):  # another process removes it as well, or it can't be removed: the next start tries
            # A process of that number may be another one: containers number theirs from 1.
            old = time.time() - draft.stat().st_mtime > _LONG
            if process.isdecimal() and (old or not _lives(int(process))) and not _is_held(draft):
                draft.unlink()


@contextmanager
def _held(draft: Path) -> Iterator[None]:
    """Make a temporary file, and lock it, so that no process on any machine takes it for left over."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_held(draft: Path) -> bool:
    if fcntl is None:
        return False
    descriptor = os.open(draft, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _free(path: Path) -> str:
    folder = next((p for p in path.absolute().parents if p.exists()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk. Windows can't do so for folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and belongs to another user
        return True
    return True
