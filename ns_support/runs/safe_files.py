"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ns_support.errors import UserError

_SUFFIX = ".part"
"""How the names of files end that are not whole yet."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk, a used-up quota and a file of the greatest size allowed raise."""


@contextmanager
def replaced(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Write a file under a temporary name; it gets its own name once it is whole and on the disk.

    Whatever happens in between, a kill included, `path` is what it was before. Missing folders are made.

    Args:
        path: the file to write; an older one is replaced.
        folder: where the temporary file lies, on the same file system as `path`; None: beside it.

    Yields:
        The temporary file's path, to be written by the caller. Its name does not end as that of `path` does.

    Raises:
        UserError: the file can't be written: no space, no right, a folder in the way. Names the file and the cause.

    Example:
        >>> with replaced(Path("scene.ply")) as draft:  # doctest: +SKIP
        ...     draft.write_bytes(b"ply ...")
    """
    draft = (folder or path.parent) / f".{path.name}.{os.getpid()}{_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.parent.mkdir(parents=True, exist_ok=True)
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
    """The sentence for a file or folder that can't be written."""
    free = f"; {_free(path)} free there" if error.errno in FULL else ""
    cause = f"{error.filename} is not a folder" if isinstance(error, FileExistsError) else error.strerror or error
    return f"{path} can't be written: {cause}{free}. What was there before is unchanged."


def remove_drafts(folder: Path) -> None:
    """Remove what `replaced` left in a folder when its process was killed; the drafts of living processes stay."""
    for draft in folder.glob(f".*{_SUFFIX}"):
        process = draft.name.removesuffix(_SUFFIX).rpartition(".")[2]
        if process.isdecimal() and not _lives(int(process)):
            draft.unlink(missing_ok=True)


def _free(path: Path) -> str:
    folder = next((p for p in path.absolute().parents if p.exists()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"


def _flush(path: Path) -> None:
    """Have the disk hold what was written; of a folder, its entries. Windows has no such thing for folders."""
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
    except OSError:  # it lives, and is someone else's
        return True
    return True
