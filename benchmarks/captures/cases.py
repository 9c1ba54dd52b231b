"""The table of cases: captures, and what a method must do with each."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captures.colmap import both_forms, colmap
from captures.sphere import CENTER, FOCAL, HEIGHT, WIDTH, fisheye, perspective, pose
from captures.writing import (
    ANGLE,
    backwards_palette,
    capture,
    floating,
    frames,
    instant_ngp,
    masked,
    mode,
    polycam,
    raw,
    sixteen,
    split_capture,
    turned,
    with_frames,
    with_points,
    with_poses,
    with_profile,
    write_images,
)
from ns_support.lenses.lens import LensType, make_lens


class Case(NamedTuple):
    """A capture, and what a method must do with it.

    Attributes:
        make: writes the capture to an empty folder.
        sentence: part of the error message, or "" if the data must be read.
        gray: whether the images are gray.
        warned: part of the warning, or "".
    """

    make: Callable[[Path], None]
    sentence: str = ""
    gray: bool = False
    warned: str = ""


PRISM = (0.05, -0.01, 0.002, 0.001, 0.001, -0.001, 0.002, -0.001)
"""Parameters of THIN_PRISM_FISHEYE: k1, k2, p1, p2, k3, k4, sx1, sy1."""
ARIA = (0.05, -0.01, 0.002, 0.0, 0.0, 0.0, 0.001, 0.001, 0.001, 0.0, -0.001, 0.0)
"""Parameters of RAD_TAN_THIN_PRISM_FISHEYE: six radial, two tangential, four thin-prism."""
OFFSET = np.array([453212.0, 5412345.0, 512.0])
"""Of the origin, as in UTM coordinates (metres)."""


def _shift(matrix: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix[:3, 3] += by
    return matrix


def _scaled(matrix: NDArray[np.float64], by: Any) -> NDArray[np.float64]:
    matrix[:3, :3] = matrix[:3, :3] * by
    return matrix


def _nan(matrix: NDArray[np.float64], i: int) -> NDArray[np.float64]:
    matrix[0, 3] = np.nan if i == 5 else matrix[0, 3]
    return matrix


def _mixed(image: Image.Image, path: Path, i: int) -> None:
    image.convert("RGBA" if i % 2 else "RGB").save(path)


def _two_sizes(image: Image.Image, path: Path, i: int) -> None:
    (image.crop((0, 0, WIDTH, 40)) if i % 2 else image).save(path)


CASES: dict[str, Case] = {
    "nerfstudio": Case(capture()),
    # pixel formats
    "palette PNG": Case(capture(lambda image, path, _: image.quantize(256).save(path))),
    "palette GIF": Case(capture(lambda image, path, _: image.quantize(256).save(path), ".gif")),
    "CMYK JPEG": Case(capture(lambda image, path, _: image.convert("CMYK").save(path, quality=98), ".jpg")),
    "gray PNG": Case(capture(mode("L")), gray=True),
    "gray and alpha PNG": Case(capture(mode("LA")), gray=True),
    "1-bit PNG": Case(
        capture(lambda image, path, _: image.convert("L").point(lambda v: 255 * (v > 127)).convert("1").save(path)),
        gray=True,
    ),
    "16-bit gray PNG": Case(capture(sixteen(1.0)), gray=True),
    "16-bit gray TIFF": Case(capture(sixteen(1.0), ".tif"), gray=True),
    "16-bit gray of few levels": Case(capture(sixteen(0.03, 29000)), gray=True, warned="levels of 256"),
    "float TIFF": Case(capture(floating, ".tif"), "floating point values"),
    "WebP": Case(capture(lambda image, path, _: image.save(path, lossless=True), ".webp")),
    "truncated JPEG": Case(
        capture(
            lambda image, path, i: (
                (image.save(path), path.write_bytes(path.read_bytes()[:300])) if i == 3 else image.save(path)
            ),
            ".jpg",
        ),
        "003.jpg can't be read",
    ),
    "empty file": Case(
        capture(lambda image, path, i: path.write_bytes(b"") if i == 3 else image.save(path)), "the file is empty"
    ),
    "HEIC": Case(
        capture(lambda image, path, _: path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0"), ".heic"), "can't be read"
    ),
    "EXR": Case(capture(lambda image, path, _: path.write_bytes(b"v/1\x01\0\0\0\0"), ".exr"), "linear light"),
    "unusable ICC profile": Case(capture(with_profile), warned="colour profile"),
    "with and without alpha": Case(capture(_mixed)),
    # sizes
    "resized images": Case(
        capture(lambda image, path, _: image.resize((80, 112)).save(path)), warned="scaled to the images"
    ),
    "width and height swapped": Case(capture(w=HEIGHT, h=WIDTH), "width and height are swapped"),
    "one image cropped": Case(
        capture(lambda image, path, i: (image.crop((0, 0, 30, HEIGHT)) if i == 3 else image).save(path)),
        "neither the same size",
    ),
    "EXIF tag, upright camera": Case(capture(turned(6, True), ".jpg"), "EXIF tag says to turn"),
    "EXIF tag, same size": Case(capture(turned(3, False), ".jpg"), warned="EXIF tag"),
    "two sizes": Case(with_frames(lambda frame, i: frame.update(h=40 if i % 2 else HEIGHT), save=_two_sizes)),
    "without w and h": Case(capture(w=None, h=None)),
    "without cx": Case(capture(cx=None), warned="has no cx"),
    # lenses
    "is_fisheye beside fl_x": Case(
        capture(
            lens=fisheye((0.05, -0.01, 0.002, -0.001, 0, 0)),
            camera_model=None,
            is_fisheye=True,
            k1=0.05,
            k2=-0.01,
            k3=0.002,
            k4=-0.001,
        )
    ),
    "is_fisheye in the frames": Case(
        with_frames(
            lambda frame, i: frame.update(is_fisheye=True, k1=0.05),
            camera_model=None,
            lens=fisheye((0.05, 0, 0, 0, 0, 0)),
        )
    ),
    "camera_model beside camera_angle_x": Case(
        capture(
            lens=fisheye((0, 0, 0, 0, 0, 0)), fl_x=None, fl_y=None, camera_angle_x=ANGLE, camera_model="OPENCV_FISHEYE"
        )
    ),
    "is_fisheye and a perspective model": Case(capture(is_fisheye=True), "both is_fisheye and the camera_model"),
    "unknown camera_model": Case(capture(camera_model="BROWN"), "is not supported; known are"),
    "FULL_OPENCV with k5": Case(capture(k5=0.1), "lens coefficient k5"),
    "camera_angle_y": Case(
        capture(
            lens=make_lens(LensType.PERSPECTIVE, (FOCAL, 60.0), CENTER, (WIDTH, HEIGHT)),
            fl_x=None,
            fl_y=None,
            camera_angle_x=ANGLE,
            camera_angle_y=2 * math.atan(0.5 * HEIGHT / 60.0),
        )
    ),
    "frames' own focal lengths": Case(
        with_frames(lambda frame, i: frame.update(fl_x=FOCAL, fl_y=FOCAL), fl_x=30.0, fl_y=30.0),
        warned="each frame's own",
    ),
    "zero focal length": Case(capture(fl_x=0.0), "must be positive"),
    "focal length that is not finite": Case(capture(fl_x=float("nan")), "must be finite"),
    # poses
    "UTM coordinates": Case(with_poses(lambda m, i: _shift(m, OFFSET)), warned="is subtracted"),
    "scale in the rotations": Case(with_poses(lambda m, i: _scaled(m, 3.0)), warned="scale of 3"),
    "mirrored": Case(with_poses(lambda m, i: _scaled(m, [-1, 1, 1])), "is mirrored"),
    "sheared": Case(with_poses(lambda m, i: _scaled(m, [1, 1.4, 1])), "is not a rotation"),
    "NaN in a pose": Case(with_poses(_nan), "has nan in row 1, column 4"),
    "3 x 4 poses": Case(with_frames(lambda frame, i: frame.update(transform_matrix=pose(i)[:3].tolist()))),
    "transposed poses": Case(with_poses(lambda m, i: m.T), "is it transposed"),
    "no pose": Case(
        with_frames(lambda frame, i: frame.pop("transform_matrix") if i == 3 else None), "has no transform_matrix"
    ),
    "one image": Case(capture(frames=frames()[:1]), "--auto-scale-poses False"),
    "no frames": Case(capture(frames=[]), "lists no frames"),
    # masks
    "gray masks": Case(masked(Image.fromarray)),
    "RGB masks": Case(masked(lambda half: Image.fromarray(half).convert("RGB"))),
    "masks of zeros and ones": Case(masked(lambda half: Image.fromarray(half // 255))),
    "palette masks": Case(masked(backwards_palette)),
    "JPEG masks": Case(masked(Image.fromarray, ".jpg")),
    "masks of labels": Case(masked(lambda half: Image.fromarray(half // 51)), "holds labels"),
    "black masks": Case(masked(lambda half: Image.fromarray(half * 0)), "hide every pixel"),
    "smaller masks": Case(masked(lambda half: Image.fromarray(half).resize((20, 28))), "make them equal"),
    # files
    "byte order mark": Case(raw(lambda text: b"\xef\xbb\xbf" + text.encode())),
    "UTF-16": Case(raw(lambda text: text.encode("utf-16"))),
    "trailing comma": Case(raw(lambda text: text[:-1].encode() + b",}"), "can't be read"),
    "backslashes": Case(with_frames(lambda frame, i: frame.update(file_path=f"images\\{i:03d}.png"))),
    "no extension": Case(with_frames(lambda frame, i: frame.update(file_path=f"images/{i:03d}"))),
    "other capitals": Case(
        with_frames(lambda frame, i: frame.update(file_path=f"Images/{i:03d}.PNG".replace("I", "i")))
    ),
    "another machine's paths": Case(
        with_frames(lambda frame, i: frame.update(file_path=f"C:\\me\\scan\\images\\{i:03d}.png"))
    ),
    "images that are gone": Case(
        with_frames(lambda frame, i: frame.update(file_path=f"images/x{i}.png") if i in (3, 4) else None),
        "of the 11 images that",
    ),
    # formats
    "split capture without _val": Case(split_capture({"train": slice(0, 9), "test": slice(9, 12)})),
    "instant-ngp, 12 images": Case(instant_ngp(12)),
    "instant-ngp, 1 image": Case(instant_ngp(1)),
    "points beside camera_angle_x": Case(
        capture(fl_x=None, fl_y=None, camera_angle_x=ANGLE, ply_file_path="none.ply"), warned=""
    ),
    "points with NaN": Case(with_points("0 0 0\nnan 0 0\n1 1 1\n")),
    "images only": Case(write_images, "found poses for none of the"),
    "Polycam": Case(polycam, "Polycam"),
    # COLMAP
    "COLMAP PINHOLE": Case(colmap("PINHOLE", ())),
    "COLMAP OPENCV": Case(
        colmap("OPENCV", (0.05, -0.02, 0.001, 0.002), perspective((0.05, -0.02, 0, 0, 0.001, 0.002)))
    ),
    "COLMAP OPENCV_FISHEYE": Case(
        colmap("OPENCV_FISHEYE", (0.05, -0.01, 0.002, -0.001), fisheye((0.05, -0.01, 0.002, -0.001, 0, 0)))
    ),
    "COLMAP FULL_OPENCV": Case(
        colmap("FULL_OPENCV", (0.05, -0.02, 0, 0, 0.01, 0, 0, 0), perspective((0.05, -0.02, 0.01, 0, 0, 0)))
    ),
    "COLMAP FULL_OPENCV, rational": Case(
        colmap("FULL_OPENCV", (0.05, 0, 0, 0, 0, 0.1, 0, 0)), "FULL_OPENCV with rational"
    ),
    "COLMAP THIN_PRISM_FISHEYE": Case(
        colmap("THIN_PRISM_FISHEYE", PRISM, fisheye((0.05, -0.01, 0.001, -0.001, 0.002, 0.001))),
        warned="nearest FISHEYE624",
    ),
    "COLMAP RAD_TAN_THIN_PRISM_FISHEYE": Case(colmap("RAD_TAN_THIN_PRISM_FISHEYE", ARIA, fisheye(ARIA))),
    "COLMAP FOV": Case(colmap("FOV", (0.5,)), "model FOV"),
    "COLMAP without points": Case(colmap("PINHOLE", (), sfm=False)),
    "COLMAP in dense/0": Case(
        colmap("PINHOLE", (), where="dense/0/sparse", images="dense/0/images"), warned="images are read from"
    ),
    "COLMAP in both forms": Case(both_forms, warned="cameras.bin is read"),
}
