"""Captures in the transforms.json formats of nerfstudio and instant-ngp, as many programs write them."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from ns_support.data.formats.lens_entries import LensEntries, read_lens
from ns_support.data.images import header
from ns_support.data.poses import Poses, checked_poses
from ns_support.data.warnings import warn_once
from ns_support.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".avif", ".exr")
_BROKEN = (OSError, ValueError, RecursionError)
_MOST_FRAMES = 100_000
"""Images of a scene beyond which a list is taken to be damaged: to look for as many files takes minutes."""
_SHOWN = 60
"""Letters of a file name that a message shows."""
_LAST_ROW = np.array([0.0, 0.0, 0.0, 1.0])
SPLITS = ("train", "val", "test")


class CaptureFrame(NamedTuple):
    """One image of a capture.

    Attributes:
        image: its file.
        mask: its mask's file, or None for none.
        depth: its depth map's file, or None for none.
        lens: its lens.
        split: the split whose file lists it, or None if one file lists all images.
    """

    image: Path
    mask: Path | None
    depth: Path | None
    lens: LensEntries
    split: str | None


class Capture(NamedTuple):
    """The contents of a transforms.json, or of one such file per split.

    Attributes:
        source: the file; the first one if there are several.
        meta: its entries besides the frames.
        frames: N images in the file's order.
        poses: [N, 4, 4] float64, camera to world.
    """

    source: Path
    meta: dict[str, Any]
    frames: list[CaptureFrame]
    poses: Poses


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, with or without a byte order mark.

    Raises:
        UserError: the file can't be read, or does not contain an object.
    """
    try:
        raw = path.read_bytes()
        wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        content = json.loads(raw.decode("utf-16" if wide else "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} can't be read: it is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except _BROKEN as error:
        raise UserError(f"{path} can't be read: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object, with braces around it, but something else.")
    return content


def split_files(folder: Path) -> dict[str, Path]:
    """Those of the files transforms_train.json, _val and _test that exist."""
    found = {split: folder / f"transforms_{split}.json" for split in SPLITS}
    return {split: path for split, path in found.items() if path.is_file()}


def read_capture(data: Path, skip_missing: bool = False) -> Capture:
    """Read a capture.

    Args:
        data: a `.json` file, or a folder with transforms.json or with one file per split.
        skip_missing: leave out missing images with a warning, as instant-ngp does.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: a file can't be read, or a frame's entries are invalid; names the file, the frame and the entry.
    """
    if data.suffix.lower() == ".json" and data.is_file():
        sources: dict[str | None, Path] = {None: data}
    elif (data / "transforms.json").is_file():
        sources = {None: data / "transforms.json"}
    else:
        sources = {split: path for split, path in split_files(data).items()}
    if not sources:
        raise FileNotFoundError(errno.ENOENT, "No such file", str(data / "transforms.json"))
    frames: list[CaptureFrame] = []
    poses: list[Any] = []
    lost: list[str] = []
    first: dict[str, Any] = {}
    for split, path in sources.items():
        whole = read_json(path)
        first = first or whole
        for position, entries in enumerate(_listed(whole, path)):
            if skip_missing and (absent := _absent(entries, path.parent)) is not None:
                lost.append(str(absent))
                continue
            frame, pose = _frame(entries, whole, path, position, split)
            frames.append(frame)
            poses.append(pose)
    source = next(iter(sources.values()))
    if lost:
        warn_once(f"{len(lost)} images that {source} lists are not there, and left out, the first is {lost[0]}.")
    if not frames:
        raise UserError(f"None of the images that {source} lists is there, the first is {lost[0]}.")
    _note_overridden(source, first, frames)
    stacked = np.stack(poses)
    stacked = checked_poses(stacked, [frame.image.name for frame in frames], source)
    return Capture(source, {k: v for k, v in first.items() if k != "frames"}, frames, stacked)


def _absent(entries: Any, folder: Path) -> Path | None:
    """A frame's image if it is missing."""
    name = entries.get("file_path") if isinstance(entries, dict) else None
    image = find(folder, name) if isinstance(name, str) else None
    return None if image is None or image.is_file() else image


def _listed(whole: Mapping[str, Any], path: Path) -> list[Any]:
    frames = whole.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(
            f"{path} lists no frames (its entry `frames` is {'missing' if frames is None else 'empty or no list'}): "
            "the program that wrote it found no camera, or exported none."
        )
    if len(frames) > _MOST_FRAMES:
        raise UserError(f"{path} lists {len(frames):,} frames; at most {_MOST_FRAMES:,} are read. Leave some out.")
    return frames


def _frame(
    entries: Any, whole: Mapping[str, Any], path: Path, position: int, split: str | None
) -> tuple[CaptureFrame, Poses]:
    where = f"Frame {position} of {path}"
    if not isinstance(entries, dict) or not isinstance(entries.get("file_path"), str):
        raise UserError(f"{where} has no file_path, the name of its image.")
    folder = path.parent
    image = find(folder, entries["file_path"])
    _note_outside(image, path)
    others = (entries.get("mask_path"), entries.get("depth_file_path"))
    files = [find(folder, name) if isinstance(name, str) and name else None for name in others]

    def size() -> tuple[int, int]:
        return header(image)[:2]

    lens = read_lens(entries, whole, size, f"{path} ({entries['file_path']})")
    return CaptureFrame(image, files[0], files[1], lens, split), _pose(entries.get("transform_matrix"), where)


def _note_outside(image: Path, source: Path) -> None:
    """Warn if an image is read from outside of the data folder: who made the file may have made it up."""
    inside, folder = Path(os.path.abspath(image)), Path(os.path.abspath(source.parent))
    if not inside.is_relative_to(folder):
        warn_once(
            f"{source} names images outside of its folder, the first is {inside}: they are read and trained on. If the "
            "file is a stranger's, look at what it names.",
            about=("outside", source),
        )


def _pose(given: Any, where: str) -> Poses:
    """[4, 4] from a nested or a flat list, with or without the last row 0 0 0 1."""
    if given is None:
        raise UserError(f"{where} has no transform_matrix, its pose.")
    try:
        matrix = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} has a transform_matrix that is no matrix of numbers.") from error
    if matrix.size in (12, 16) and matrix.ndim == 1:
        matrix = matrix.reshape(-1, 4)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise UserError(f"{where} has a transform_matrix of shape {matrix.shape}; it must be 4 x 4, or 3 x 4.")
    if matrix.shape == (4, 4) and np.isfinite(matrix).all() and abs(matrix[3] - _LAST_ROW).max() > 1e-6:
        raise UserError(
            f"{where} has a transform_matrix whose last row is {matrix[3].tolist()}, not 0 0 0 1: is it transposed? "
            "Positions belong in the last column."
        )
    return np.concatenate([matrix[:3], [[0.0, 0.0, 0.0, 1.0]]])


def find(folder: Path, name: str) -> Path:
    """The file that an entry refers to; the path as written if there is none.

    Backslashes, a missing extension, different capitalisation and paths of another machine are corrected if exactly one
    file fits.

    Raises:
        UserError: the system can't look for a file of that name, such as one of 5,000 letters.
    """
    try:
        return _found(folder, name)
    except OSError as error:
        short = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
        raise UserError(f"A file of {folder} is named {short}, which can't be: {error.strerror}.") from error


def _found(folder: Path, name: str) -> Path:
    plain = folder / name
    if plain.is_file():
        return plain
    parts = [part for part in PureWindowsPath(name).parts if part not in (".", "\\", "/")]
    if PureWindowsPath(name).drive:
        parts = parts[1:]
    if not parts:
        return plain
    ways = [folder.joinpath(*parts)] if not plain.is_absolute() or "\\" in name else []
    # A path of another machine or working directory: the part after the folder's own name, or at least two names.
    moved = Path(name).is_absolute() or PureWindowsPath(name).is_absolute()
    own = folder.resolve().name
    ways += [
        folder.joinpath(*parts[i:])
        for i in range(1, len(parts))
        if parts[i - 1] == own or (moved and i < len(parts) - 1)
    ]
    for way in (plain, *ways):
        found = _spelled(way)
        if found is not None:
            return found
    return ways[0] if ways and "\\" in name else plain


def _spelled(path: Path) -> Path | None:
    if path.is_file():
        return path
    with_suffix = [path.with_name(path.name + suffix) for suffix in _SUFFIXES]
    there = [other for other in with_suffix if other.is_file()]
    if len(there) == 1:
        return there[0]
    return _other_capitals(path) if not there else None


_listings: dict[tuple[Path, int], dict[str, list[str]]] = {}


def _other_capitals(path: Path) -> Path | None:
    try:
        changed = path.parent.stat().st_mtime_ns
        if (path.parent, changed) not in _listings:
            names: dict[str, list[str]] = {}
            for other in path.parent.iterdir():
                names.setdefault(other.name.lower(), []).append(other.name)
            _listings[path.parent, changed] = names
    except OSError:  # no such folder
        return None
    listing = _listings[path.parent, changed]
    wanted = path.name.lower()
    fitting = listing.get(wanted, []) or [n for suffix in _SUFFIXES for n in listing.get(wanted + suffix, [])]
    return path.with_name(fitting[0]) if len(fitting) == 1 else None


def _note_overridden(source: Path, whole: Mapping[str, Any], frames: Iterable[CaptureFrame]) -> None:
    value = whole.get("fl_x")
    if value is None:
        return
    differing = [frame for frame in frames if not math.isclose(frame.lens.fx, float(value), rel_tol=1e-6)]
    if differing:
        warn_once(
            f"{len(differing)} frames of {source} have a focal length of their own, such as {differing[0].lens.fx:g} "
            f"in place of {value}: each frame's own is taken."
        )


def split_indices(capture: Capture, by_rule: tuple[Any, Any], split: str) -> list[int]:
    """Which frames belong to a split: as given by files or lists, or else by a rule.

    If there is no list for "val", that for "test" is used, and vice versa.

    Args:
        capture: N frames.
        by_rule: indices for training and for evaluation.
        split: "train", "val" or "test".

    Raises:
        UserError: a list names an image that is not one of the frames.
    """
    named: dict[str, list[int]] = {}
    for i, frame in enumerate(capture.frames):
        if frame.split is not None:
            named.setdefault(frame.split, []).append(i)
    for name in SPLITS if not named else ():
        listed = capture.meta.get(f"{name}_filenames")
        if isinstance(listed, list) and listed:
            named[name] = _positions(capture, listed, f"{name}_filenames")
    if not named:
        train, others = by_rule
        return [int(i) for i in (train if split == "train" else others)]
    if split in named:
        return named[split]
    other = {"val": "test", "test": "val"}.get(split)
    if other in named:
        return named[other]
    taken = {i for indices in named.values() for i in indices}
    return [i for i in range(len(capture.frames)) if i not in taken]


def _positions(capture: Capture, names: list[Any], entry: str) -> list[int]:
    folder = capture.source.parent
    by_path: dict[Path, list[int]] = {}
    by_name: dict[str, list[int]] = {}
    for i, frame in enumerate(capture.frames):
        by_path.setdefault(frame.image.resolve(), []).append(i)
        by_name.setdefault(frame.image.name, []).append(i)
    found: set[int] = set()
    for name in names:
        path = find(folder, str(name))
        same_name = by_name.get(path.name, [])
        indices = by_path.get(path.resolve(), same_name if len(same_name) == 1 else [])
        if not indices:
            raise UserError(f"{capture.source} lists {name!r} in {entry}, which is no image of its frames.")
        found.update(indices)
    return sorted(found)
