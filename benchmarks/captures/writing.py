"""Captures in nerfstudio's and instant-ngp's formats.

`capture` and most others return a function that writes the capture to a folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from captures.sphere import CENTER, COUNT, FOCAL, HEIGHT, WIDTH, draw, pose
from ns_support.lenses.lens import Lens

Entries = dict[str, Any]
"""Entries of a transforms.json, or of one of its frames."""
Save = Callable[[Image.Image, Path, int], None]
"""Writes image i to a path."""
CAMERA: Entries = {
    "camera_model": "OPENCV",
    **{"fl_x": FOCAL, "fl_y": FOCAL, "cx": CENTER[0], "cy": CENTER[1], "w": WIDTH, "h": HEIGHT},
}
ANGLE = 2 * math.atan(0.5 * WIDTH / FOCAL)
"""Horizontal field of view (radians)."""


def write_images(folder: Path, save: Save | None = None, suffix: str = ".png", lens: Lens | None = None) -> None:
    """Write the images of all cameras to the folder `images`."""
    image = draw(lens)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(COUNT):
        path = folder / "images" / f"{i:03d}{suffix}"
        image.save(path) if save is None else save(image.copy(), path, i)


def frames(suffix: str = ".png") -> list[Entries]:
    """The frames of a transforms.json."""
    return [{"file_path": f"images/{i:03d}{suffix}", "transform_matrix": pose(i).tolist()} for i in range(COUNT)]


def write(folder: Path, entries: Entries, name: str = "transforms.json") -> None:
    """Write a JSON file."""
    (folder / name).write_text(json.dumps(entries))


def capture(
    save: Save | None = None, suffix: str = ".png", lens: Lens | None = None, **changes: Any
) -> Callable[[Path], None]:
    """A capture in nerfstudio's format; entries that are None are omitted."""

    def make(folder: Path) -> None:
        write_images(folder, save, suffix, lens)
        entries = CAMERA | {"frames": frames(suffix)} | changes
        write(folder, {k: v for k, v in entries.items() if v is not None})

    return make


def with_frames(change: Callable[[Entries, int], None], **changes: Any) -> Callable[[Path], None]:
    """A capture with `change(frame, i)` applied to each frame."""

    def make(folder: Path) -> None:
        listed = frames()
        for i, frame in enumerate(listed):
            change(frame, i)
        capture(frames=listed, **changes)(folder)

    return make


def with_poses(
    change: Callable[[NDArray[np.float64], int], NDArray[np.float64]], **changes: Any
) -> Callable[[Path], None]:
    """A capture with `change(pose, i)` for poses."""
    return with_frames(lambda frame, i: frame.update(transform_matrix=change(pose(i), i).tolist()), **changes)


def mode(name: str) -> Save:
    """Save images in one of Pillow's modes."""
    return lambda image, path, _: image.convert(name).save(path)


def sixteen(scale: float, offset: int = 0) -> Save:
    """Save 16-bit gray images that use a part of the range."""

    def save(image: Image.Image, path: Path, _: int) -> None:
        values = np.asarray(image.convert("L")).astype(np.float64) * 256 * scale + offset
        Image.fromarray(values.astype(np.uint16)).save(path)

    return save


def floating(image: Image.Image, path: Path, _: int) -> None:
    """Save a gray image in floating point."""
    Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255).save(path)


def turned(orientation: int, pixels: bool) -> Save:
    """Save images with an EXIF orientation tag; `pixels`: whether the pixels are rotated as well."""

    def save(image: Image.Image, path: Path, _: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        (image.transpose(Image.Transpose.ROTATE_90) if pixels else image).save(path, quality=98, exif=exif)

    return save


def with_profile(image: Image.Image, path: Path, _: int) -> None:
    """Save an image with a colour profile that cannot be applied to RGB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    image.save(path, icc_profile=lab.tobytes())


def masked(values: Callable[[NDArray[np.uint8]], Image.Image], suffix: str = ".png") -> Callable[[Path], None]:
    """A capture with masks; `values` makes the mask image from an array that is 255 in the left half, else 0."""

    def make(folder: Path) -> None:
        half = np.zeros((HEIGHT, WIDTH), np.uint8)
        half[:, : WIDTH // 2] = 255
        (folder / "masks").mkdir(parents=True)
        for i in range(COUNT):
            values(half).save(folder / "masks" / f"{i:03d}{suffix}")
        with_frames(lambda frame, i: frame.update(mask_path=f"masks/{i:03d}{suffix}"))(folder)

    return make


def backwards_palette(half: NDArray[np.uint8]) -> Image.Image:
    """A palette mask in which index 0 is white."""
    image = Image.new("P", half.shape[::-1])
    image.putdata([int(v == 0) for v in half.ravel()])
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


def raw(change: Callable[[str], bytes]) -> Callable[[Path], None]:
    """A capture with `change` applied to the text of its transforms.json."""

    def make(folder: Path) -> None:
        capture()(folder)
        path = folder / "transforms.json"
        path.write_bytes(change(path.read_text()))

    return make


def split_capture(splits: dict[str, slice], suffix: str = ".jpg", **changes: Any) -> Callable[[Path], None]:
    """A capture with a transforms file for each split."""

    def make(folder: Path) -> None:
        write_images(folder, lambda image, path, _: image.save(path), suffix)
        for split, part in splits.items():
            entries = CAMERA | {"camera_angle_x": ANGLE, "frames": frames(suffix)[part]} | changes
            write(folder, {k: v for k, v in entries.items() if v is not None}, f"transforms_{split}.json")

    return make


def points(folder: Path, text: str) -> None:
    """Write a PLY file of points; `text` has a line of x, y, z for each."""
    header = "".join(f"property float {a}\n" for a in "xyz")
    count = len(text.splitlines())
    (folder / "points.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex {count}\n{header}end_header\n{text}")


def with_points(text: str) -> Callable[[Path], None]:
    """A capture with a PLY file of points."""

    def make(folder: Path) -> None:
        capture(ply_file_path="points.ply")(folder)
        points(folder, text)

    return make


def polycam(folder: Path) -> None:
    """Write a raw export of Polycam."""
    write_images(folder)
    (folder / "keyframes/cameras").mkdir(parents=True)


def instant_ngp(count: int) -> Callable[[Path], None]:
    """A capture in instant-ngp's format with the first `count` images."""

    def make(folder: Path) -> None:
        entries = {"fl_x": None, "fl_y": None, "camera_model": None, "camera_angle_x": ANGLE, "aabb_scale": 4}
        capture(frames=frames()[:count], **entries)(folder)

    return make
