"""Recognises the format of a data folder from the files in it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ns_support.data.formats.captures import find, read_json
from ns_support.data.formats.lens_entries import LENS_ENTRIES
from ns_support.data.warnings import warn_once

COLMAP_FOLDERS = ("colmap/sparse/0", "sparse/0", "colmap/sparse", "sparse", "colmap", ".")
"""Places of a COLMAP model in a data folder, in the order of search."""
_ELSEWHERE = ("sparse/*", "colmap/sparse/*", "dense/*/sparse", "dense/sparse", "dense/*/sparse/0", "distorted/sparse/*")
COLMAP_CAMERAS = ("cameras.bin", "cameras.txt")
_NERFSTUDIO_ENTRIES = ("ply_file_path", "applied_transform", "orientation_override", "camera_model")
_OTHERS = (
    ("keyframes/cameras", "a raw export of Polycam", "`ns-process-data polycam --data DIR --output-dir NEW`"),
    ("keyframes/corrected_cameras", "a raw export of Polycam", "`ns-process-data polycam --data DIR --output-dir NEW`"),
    ("EXR_RGBD", "an export of Record3D", "`ns-process-data record3d --data DIR --output-dir NEW`"),
    ("poses_bounds.npy", "a scene of LLFF, without lens and axes that are known here", "COLMAP's model of it"),
    ("database.db", "a COLMAP database without a model", "`colmap mapper` first"),
    ("*.r3d", "an export of Record3D", "`ns-process-data record3d --data DIR --output-dir NEW`"),
    # Perhaps: cameras write such files beside photographs, too.
    ("*.xml", "perhaps an export of Metashape", "`ns-process-data metashape --xml FILE --data DIR --output-dir NEW`"),
    ("*.csv", "perhaps an export of RealityCapture", "`ns-process-data realitycapture --csv FILE --data DIR ...`"),
    ("*.out", "perhaps a Bundler file, which is not read", "an export for COLMAP instead"),
)

Format = Literal["blender", "nerfstudio", "instant_ngp"]


def transforms_format(data: Path) -> Format | None:
    """Which parser fits the `.json` files of a folder, or a single such file; None if none fits.

    Raises:
        UserError: a file can't be read.
    """
    if data.suffix.lower() == ".json":
        return _of_entries(_entries(data))
    train = _entries(data / "transforms_train.json")
    if "camera_angle_x" in train and not _is_capture(train, data):
        return "blender"
    return _of_entries(_entries(data / "transforms.json")) or ("nerfstudio" if _listed(train) else None)


def names_points(data: Path) -> bool:
    """Whether the transforms.json in a folder, or a given `.json` file, names a file of SfM points.

    Raises:
        UserError: the file can't be read.
    """
    folder = data.parent if data.suffix.lower() == ".json" else data
    paths = [data] if folder != data else [data / "transforms.json", data / "transforms_train.json"]
    if any(_entries(path).get("ply_file_path") for path in paths):
        return True
    if (folder / "sparse_pc.ply").is_file() and any(path.is_file() for path in paths):
        warn_once(
            f"The points in {folder / 'sparse_pc.ply'} are not used, as transforms.json does not name them: add "
            '"ply_file_path": "sparse_pc.ply" if they are of this scene.'
        )
    return False


def colmap_model(data: Path, configured: Path) -> Path | None:
    """The folder of a COLMAP model, relative to the data folder; None if there is none.

    Args:
        data: the data folder.
        configured: the place to search first.
    """
    places = [Path(configured), *map(Path, COLMAP_FOLDERS)]
    places += [path.relative_to(data) for pattern in _ELSEWHERE for path in sorted(data.glob(pattern))]
    models = [place for place in dict.fromkeys(places) if _holds_model(data / place)]
    if not models:
        return None
    chosen = models[0]
    sizes = {model: _registered(data / model) for model in models if model.parent == chosen.parent}
    largest = max(sizes, key=lambda model: sizes[model])
    if sizes[largest] > sizes[chosen]:
        warn_once(
            f"There are several COLMAP models in {(data / chosen).parent}: {chosen} is read, of {sizes[chosen]} "
            f"images; `colmap --colmap-path {largest}` reads that of {sizes[largest]}."
        )
    return chosen


def what_it_is_instead(folder: Path, certain: bool = False) -> str:
    """For a folder that no parser fits, a sentence that says what it seems to be and what to do; may be empty.

    Args:
        folder: the data folder.
        certain: whether to say nothing of what it is perhaps.
    """
    for pattern, what, remedy in _OTHERS:
        if certain and what.startswith("perhaps"):
            continue
        if any(folder.glob(pattern)):
            return f" It looks like {what}: use {remedy}, and train on what that makes."
    if (folder / "metadata.json").is_file() and (any(folder.glob("rgb*")) or any(folder.glob("*.jpg"))):
        return (
            " It looks like an export of Record3D: use `ns-process-data record3d --data DIR --output-dir NEW`, and "
            "train on what that makes."
        )
    return ""


def _entries(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _listed(entries: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    frames = entries.get("frames")
    return [frame for frame in frames if isinstance(frame, dict)] if isinstance(frames, list) else []


def _is_capture(entries: Mapping[str, Any], folder: Path) -> bool:
    """Whether a transforms_train.json is a real capture: it describes a lens in detail, or its images are not PNG."""
    frames = _listed(entries)
    if not LENS_ENTRIES.isdisjoint(entries) or any(not LENS_ENTRIES.isdisjoint(frame) for frame in frames):
        return True
    names = [frame["file_path"] for frame in frames if isinstance(frame.get("file_path"), str)]
    if not names:
        return False
    first = find(folder, names[0])
    if (folder / (names[0] + ".png")).is_file():
        return False
    return first.is_file() and first.suffix.lower() != ".png"


def _of_entries(entries: Mapping[str, Any]) -> Format | None:
    if not isinstance(entries.get("frames"), list) and not {"fl_x", "camera_angle_x"} & set(entries):
        return None
    sources = [entries, *_listed(entries)]
    if any("fl_x" in source for source in sources):
        return "nerfstudio"
    if any({"camera_angle_x", "x_fov"} & set(source) for source in sources):
        own = "aabb_scale" not in entries and any(name in entries for name in _NERFSTUDIO_ENTRIES)
        return "nerfstudio" if own else "instant_ngp"
    return "nerfstudio"


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in COLMAP_CAMERAS)


def _registered(model: Path) -> int:
    """The number of images of a model; 0 for text files, which are not read for this."""
    path = model / "images.bin"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        start = file.read(8)
    return int(struct.unpack("<Q", start)[0]) if len(start) == 8 else 0
