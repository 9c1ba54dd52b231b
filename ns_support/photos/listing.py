"""Which files of a folder are photographs, and what the others are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VIDEOS = frozenset(
    {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mts", ".m2ts", ".3gp", ".wmv", ".flv", ".mpg", ".mpeg", ".insv"}
)
"""File name extensions, in lower case, that count as a video."""
PHOTOGRAPHS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".hif", ".avif"}
)
RAWS = frozenset({".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".srw", ".pef", ".raw"})
_ASIDE = frozenset({"masks", "mask", "depths", "depth", "thumbnails", "thumbs", "@eadir", "__macosx", "lost.dir"})
"""Folders, in lower case, that hold no photographs of the scene."""
_SMALLER = re.compile(r"(.+)_(2|4|8|16)")
RECORD = "photos.json"
"""Marks a folder as a result of this package, and says what it was made of."""


class Listing(NamedTuple):
    """The files of a folder.

    Attributes:
        photographs: relative to the folder, in natural order (2 before 10).
        raws: files that a raw converter must develop first.
        videos: relative to the folder, too.
    """

    photographs: list[Path]
    raws: list[Path]
    videos: list[Path]


def is_video(path: Path) -> bool:
    """Whether a path is a file that its name says is a video."""
    return path.suffix.lower() in VIDEOS and not path.is_dir()


def list_files(folder: Path) -> Listing:
    """Find the photographs in a folder and the folders below.

    Hidden files, thumbnails, masks, reduced copies (`images_2` beside `images`) and results of this package are left
    out.
    """
    found: dict[str, list[Path]] = {"photographs": [], "raws": [], "videos": []}
    for path in _walked(folder):
        suffix = path.suffix.lower()
        for kind, suffixes in (("photographs", PHOTOGRAPHS), ("raws", RAWS), ("videos", VIDEOS)):
            if suffix in suffixes:
                found[kind].append(path.relative_to(folder))
    return Listing(**{kind: sorted(paths, key=natural) for kind, paths in found.items()})


def holds_photographs(folder: Path) -> bool:
    """Whether there is at least one photograph, raw file or video in a folder or below."""
    kinds = PHOTOGRAPHS | RAWS | VIDEOS
    return any(path.suffix.lower() in kinds for path in _walked(folder))


def natural(path: Path) -> tuple[tuple[str, int, str], ...]:
    """Sorting key by which numbers in names count as numbers."""
    parts = re.split(r"(\d+)", path.as_posix().lower())
    texts, numbers = parts[::2], [*map(int, parts[1::2]), -1]
    return (*((text, number, "") for text, number in zip(texts, numbers, strict=True)), ("", -1, path.as_posix()))


def _walked(folder: Path) -> Iterator[Path]:
    seen = {os.path.realpath(folder)}
    for here, folders, names in os.walk(folder, followlinks=True):
        below = {}
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(here, name))
            if real not in seen and not _is_aside(Path(here) / name, set(folders)):
                below[name] = real
        # A link may lead back to a parent: every real folder is entered once.
        seen.update(below.values())
        folders[:] = list(below)
        yield from (Path(here) / name for name in names if not name.startswith(".") and name.lower() != "thumbs.db")


def _is_aside(folder: Path, beside: set[str]) -> bool:
    smaller = _SMALLER.fullmatch(folder.name)
    return (
        folder.name.startswith(".")
        or folder.name.lower() in _ASIDE
        or (smaller is not None and smaller[1] in beside)
        or (folder / RECORD).is_file()
        or (folder / "sparse").is_dir()
    )
