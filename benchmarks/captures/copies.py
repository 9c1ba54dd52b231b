"""Copies of a scene in which some views differ: the files that stay the same are links to the original's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from numpy.typing import NDArray
from PIL import Image

from ns_support.data.formats.captures import SPLITS, find, read_json, split_files
from ns_support.data.formats.parsers import checked
from ns_support.data.formats.recognition import transforms_format

FAULTS = "faults.json"
"""File of a copy that says how it differs from the original: a list, as a copy of a copy has several faults."""
_WRITTEN_ANEW = re.compile(r"transforms.*\.json|faults\.json")
_DOWNSCALED = re.compile(r"images_\d+")


class Frame(NamedTuple):
    """A view of a scene.

    Attributes:
        entries: what the scene's file says of it; to be changed in place.
        image: its image in the original, relative to the scene's folder.
        splits: those of "train", "val" and "test" that it belongs to.
    """

    entries: dict[str, Any]
    image: Path
    splits: frozenset[str]

    @property
    def training(self) -> bool:
        """Whether the view is trained on."""
        return "train" in self.splits


class SceneCopy:
    """A copy of a scene, made in memory first; `write` writes it.

    The split is that of this package's parsers. In a transforms.json the copy names the images of each split, even
    where the original leaves that to a rule: changed images have other names, from which a rule might tell another
    split.

    Args:
        source: folder of a scene in Blender's, nerfstudio's or instant-ngp's format.

    Raises:
        SystemExit: the folder is of no such format, an image lies outside it, or is trained on and tested.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        known = transforms_format(source) if source.is_dir() else None
        if known is None:
            raise SystemExit(f"{source} is no folder in Blender's, nerfstudio's or instant-ngp's format.")
        self.blender = known == "blender"
        self.changed: dict[Path, NDArray[np.uint8]] = {}
        """New images [H, W, 3 or 4], by the name of the original's."""
        if not self.blender and (source / "transforms.json").is_file():
            self.files = {"transforms.json": read_json(source / "transforms.json")}
        else:
            self.files = {path.name: read_json(path) for path in split_files(source).values()}
        self.frames = self._read_frames()
        evaluated = {frame.image for frame in self.frames if frame.splits - {"train"}}
        for frame in self.of(training=True):
            if frame.image in evaluated:
                raise SystemExit(f"{frame.image} is trained on and tested: a fault can't be in one of the two only.")

    def _read_frames(self) -> list[Frame]:
        members = self._members() if "transforms.json" in self.files else None
        frames = []
        for name, content in self.files.items():
            own = Path(name).stem.removeprefix("transforms_")
            for entries in content["frames"]:
                image = self._image(entries["file_path"])
                splits = {own} if members is None else {split for split in SPLITS if image in members[split]}
                inside = image.relative_to(self.source) if image.is_relative_to(self.source) else None
                if inside is None or ".." in inside.parts:
                    raise SystemExit(f"{image} does not lie in {self.source}: its place in a copy is not known.")
                if not self.blender:  # an entry may have the folder's own name in it, which the copy has not
                    entries["file_path"] = inside.as_posix()
                frames.append(Frame(entries, inside, frozenset(splits)))
        return frames

    def _members(self) -> dict[str, set[Path]]:
        """The images of each split, as this package's parser tells them."""
        config = NerfstudioDataParserConfig(data=self.source, downscale_factor=1, load_3D_points=False)
        parser = checked(config).setup()
        return {split: set(parser.get_dataparser_outputs(split).image_filenames) for split in SPLITS}

    def _image(self, name: str) -> Path:
        plain = self.source / f"{name}.png"  # what Blender's names mean, even if there is a .jpg too
        return plain if self.blender and plain.is_file() else find(self.source, name)

    def of(self, training: bool) -> list[Frame]:
        """The views that are trained on, or all the others."""
        return [frame for frame in self.frames if frame.training == training]

    def write(self, target: Path, fault: dict[str, Any]) -> None:
        """Write the copy.

        Args:
            target: new folder.
            fault: what `FAULTS` says of this copy, after what it says of the original.

        Raises:
            SystemExit: `target` is there already.
        """
        if target.exists():
            raise SystemExit(f"{target} is there already.")
        target.mkdir(parents=True)
        for path in sorted(self.source.iterdir()):
            # nerfstudio's parser would take smaller images of the same name, which are not changed.
            stale = bool(self.changed) and _DOWNSCALED.fullmatch(path.name)
            if not _WRITTEN_ANEW.fullmatch(path.name) and not stale:
                _link(path.resolve(), target / path.name)
        self._write_images(target, fault["fault"])
        for name, content in self.files.items():
            if name == "transforms.json":
                for split in SPLITS:
                    listed = [frame.entries["file_path"] for frame in self.frames if split in frame.splits]
                    content[f"{split}_filenames"] = listed
            (target / name).write_text(json.dumps(content, indent=1))
        (target / FAULTS).write_text(json.dumps([*faults_of(self.source), fault], indent=1) + "\n")

    def _write_images(self, target: Path, folder: str) -> None:
        """Write the changed images to a folder of their own.

        nerfstudio's parser sorts images by their names. For the order to stay, unchanged images are linked in that
        folder as well. Blender's order is that of the file.
        """
        while (target / folder).exists():  # a link into the original, in which nothing may be written
            folder += "_again"
        for frame in self.frames:
            path, pixels = frame.image, self.changed.get(frame.image)
            if pixels is None and (self.blender or not self.changed):
                continue
            path = folder / (path if pixels is None else path.with_suffix(".png"))
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            if pixels is not None:
                Image.fromarray(pixels).save(target / path)
            elif not (target / path).exists():  # several frames may be of one image
                _link((self.source / frame.image).resolve(), target / path)
            # Blender's names have no suffix: nerfstudio's parser appends it.
            frame.entries["file_path"] = f"./{path.with_suffix('').as_posix()}" if self.blender else path.as_posix()


def faults_of(scene: Path) -> list[dict[str, Any]]:
    """What is known of a scene's faults; empty if it is no copy of another."""
    path = scene / FAULTS
    return json.loads(path.read_text()) if path.is_file() else []


def _link(path: Path, link: Path) -> None:
    try:
        link.symlink_to(path)
    except OSError:  # a file system without links, or Windows without the right to make them
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, link)
