"""Make the scenes that `docs/results.md` measures, from the data that their authors publish.

    python benchmarks/scenes.py blender NERF_SYNTHETIC/lego SCENES/lego_200 --side 200
    python benchmarks/scenes.py photographs FOX SCENES/fox_270 --factor 4 --test images/0005.jpg images/0016.jpg

`blender` takes a folder in Blender's format (`ns-download-data blender` fetches NeRF-synthetic's) and averages blocks
of its pixels, in premultiplied alpha, down to images of the given side. `photographs` takes a folder in nerfstudio's or
instant-ngp's format, averages blocks of factor x factor pixels, divides the intrinsics by the factor, and writes which
images are the test split: those named, or every 8th of the sorted names with --every 8.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

PIXELS = ("fl_x", "fl_y", "cx", "cy", "w", "h")
"""Entries of a transforms.json in pixels, at its top or in a frame."""


def averaged(image: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Means over blocks of pixels; rows and columns that do not fill a block are cut off.

    Args:
        image: [H, W, 3 or 4]; colours are weighted by alpha, if there is one.
        factor: side of a block (pixels).

    Returns:
        [H // factor, W // factor, 3 or 4].
    """
    height, width = image.shape[0] // factor, image.shape[1] // factor
    whole = image[: height * factor, : width * factor].astype(np.float64)
    if image.shape[2] == 4:
        whole[..., :3] *= whole[..., 3:] / 255.0
    means = whole.reshape(height, factor, width, factor, -1).mean((1, 3))
    if image.shape[2] == 4:
        means[..., :3] *= 255.0 / np.maximum(means[..., 3:], 1e-9)
    return means.round().clip(0, 255).astype(np.uint8)


def shrink(source: Path, target: Path, factor: int) -> tuple[int, int]:
    """Shrink an image file by averaging; returns the new width and height.

    Raises:
        SystemExit: the file does not exist, or can't be read.
    """
    try:
        with Image.open(source) as image:
            pixels = np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB"))
    except OSError as error:
        sys.exit(f"{source} can't be read: {error}")
    small = averaged(pixels, factor)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).save(target, quality=95)
    return small.shape[1], small.shape[0]


def blender(source: Path, target: Path, side: int) -> None:
    """Make all three splits of a scene in Blender's format.

    Raises:
        SystemExit: `side` does not divide the images' side.
    """
    for split in ("train", "val", "test"):
        meta = json.loads((source / f"transforms_{split}.json").read_text())
        for frame in meta["frames"]:
            image = source / f"{frame['file_path']}.png"
            with Image.open(image) as opened:
                whole = opened.width
            if whole % side:
                sys.exit(f"--side must divide the images' {whole} pixels, got {side}")
            shrink(image, target / f"{frame['file_path']}.png", whole // side)
        (target / f"transforms_{split}.json").write_text(json.dumps(meta, indent=1))


def photographs(source: Path, target: Path, factor: int, test: list[str], every: int) -> None:
    """Make a capture in nerfstudio's or instant-ngp's format, with its test split in transforms.json.

    Raises:
        SystemExit: an image named for the test split does not exist.
    """
    meta: dict[str, Any] = json.loads((source / "transforms.json").read_text())
    names = sorted(frame["file_path"] for frame in meta["frames"])
    chosen = test or names[::every]
    missing = sorted(set(chosen) - set(names))
    if missing:
        sys.exit(f"{source / 'transforms.json'} has no {', '.join(missing)}; it has {names[0]}, {names[1]}, ...")
    for frame in meta["frames"]:
        size = shrink(source / frame["file_path"], target / frame["file_path"], factor)
    for entries in (meta, *meta["frames"]):
        entries |= {name: entries[name] / factor for name in PIXELS if name in entries}
    meta |= dict(zip(("w", "h"), size, strict=True))
    meta |= {"train_filenames": [name for name in names if name not in chosen]}
    meta |= {"val_filenames": chosen, "test_filenames": chosen}
    if "ply_file_path" in meta:
        shutil.copy(source / meta["ply_file_path"], target / meta["ply_file_path"])
    (target / "transforms.json").write_text(json.dumps(meta, indent=1))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("blender", "photographs"):
        of_kind = kinds.add_parser(kind)
        of_kind.add_argument("source", type=Path, help="folder of the published scene")
        of_kind.add_argument("target", type=Path, help="folder to write")
        if kind == "blender":
            of_kind.add_argument("--side", type=int, required=True, help="height and width of the new images in pixels")
        else:
            of_kind.add_argument("--factor", type=int, required=True, help="by which the images are shrunk")
            of_kind.add_argument(
                "--test", nargs="+", default=[], help="names of the test images, as in transforms.json"
            )
            of_kind.add_argument(
                "--every", type=int, default=8, help="without --test: one of this many images is in the test split"
            )
    given = parser.parse_args(arguments)
    if given.kind == "blender":
        blender(given.source, given.target, given.side)
    else:
        photographs(given.source, given.target, given.factor, given.test, given.every)


if __name__ == "__main__":
    main()
