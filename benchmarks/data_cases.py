"""What both methods make of data as they come out of cameras, editors and exporters: the table in docs/data.md.

    python benchmarks/data_cases.py > table.md       # or the names of some cases

Every case is a capture of a coloured sphere, made on the spot: the colour of a pixel follows from the direction of its
ray, and so it can be checked that each colour comes under the right ray, up to the rotation that a parser may apply to
the whole scene. A case is right if the mean error is below 0.02, or if a sentence says what is wrong.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ns_support.errors import UserError
from ns_support.lenses.lens import Lens, LensType, make_lens
from ns_support.rays import camera_rays

WIDTH, HEIGHT, FOCAL, COUNT = 40, 56, 48.0, 12
CENTER = (20.5, 27.0)
METHODS = ("raygauss", "instant-ngp-hardmine")
RIGHT = 0.02
"""Mean absolute error of a colour below which the rays are right."""

Made = dict[str, Any]
Save = Callable[[Image.Image, Path, int], None]


class Case(NamedTuple):
    """A way for data to be.

    Attributes:
        make: writes them to an empty folder.
        sentence: what a refusal contains, or "" where the data are to be read.
        gray: whether the images have no colours.
        warned: what a warning contains, or "".
    """

    make: Callable[[Path], None]
    sentence: str = ""
    gray: bool = False
    warned: str = ""


class Outcome(NamedTuple):
    """What a method made of a case.

    Attributes:
        error: mean absolute error of the colours, None where it was refused.
        sentence: of the refusal, or "".
        warnings: lines that it printed.
    """

    error: float | None
    sentence: str
    warnings: str


# ---- the sphere ------------------------------------------------------------------------------------------------------


def color_of(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours in [0, 1], smooth and without symmetry, of directions [*, 3] in a camera's own frame and of its own."""
    x, y = directions[..., 0] / -directions[..., 2], directions[..., 1] / -directions[..., 2]
    return np.stack([0.5 + 0.9 * x, 0.5 + 0.7 * y, 0.5 + 0.5 * x - 0.5 * y], -1).clip(0.02, 0.98)


def perspective(coefficients: tuple[float, ...] = ()) -> Lens:
    """The lens of most cases."""
    return make_lens(LensType.PERSPECTIVE, (FOCAL, FOCAL), CENTER, (WIDTH, HEIGHT), coefficients)


def fisheye(coefficients: tuple[float, ...]) -> Lens:
    """One of the fisheye lenses, of 6 or 12 coefficients."""
    kind = LensType.FISHEYE624 if len(coefficients) == 12 else LensType.FISHEYE
    return make_lens(kind, (FOCAL, FOCAL), CENTER, (WIDTH, HEIGHT), coefficients)


def picture(lens: Lens | None = None, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """What a camera sees, [height, width] of the lens's first pixels."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = (lens or perspective()).rays(torch.from_numpy(columns), torch.from_numpy(rows))
    return Image.fromarray((color_of(rays.directions.numpy()) * 255).round().astype(np.uint8))


def pose(i: int) -> NDArray[np.float64]:
    """[4, 4], camera to world, of the i-th of the cameras on a circle that look at its centre."""
    angle = 2 * math.pi * i / COUNT
    back = np.array([math.cos(angle), math.sin(angle), 0.3]) / math.hypot(1, 0.3)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(back, right), back], -1)
    matrix[:3, 3] = 3.0 * back
    return matrix


# ---- writing captures ------------------------------------------------------------------------------------------------

CAMERA: Made = {
    "camera_model": "OPENCV",
    **{"fl_x": FOCAL, "fl_y": FOCAL, "cx": CENTER[0], "cy": CENTER[1], "w": WIDTH, "h": HEIGHT},
}
ANGLE = 2 * math.atan(0.5 * WIDTH / FOCAL)


def write_images(folder: Path, save: Save | None = None, suffix: str = ".png", lens: Lens | None = None) -> None:
    """The images of all cameras, in `images`."""
    image = picture(lens)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(COUNT):
        path = folder / "images" / f"{i:03d}{suffix}"
        image.save(path) if save is None else save(image.copy(), path, i)


def frames(suffix: str = ".png") -> list[Made]:
    """The frames of a transforms.json."""
    return [{"file_path": f"images/{i:03d}{suffix}", "transform_matrix": pose(i).tolist()} for i in range(COUNT)]


def write(folder: Path, entries: Made, name: str = "transforms.json") -> None:
    """A JSON file."""
    (folder / name).write_text(json.dumps(entries))


def capture(
    save: Save | None = None, suffix: str = ".png", lens: Lens | None = None, **changes: Any
) -> Callable[[Path], None]:
    """A capture in nerfstudio's format; entries that are None are left out."""

    def make(folder: Path) -> None:
        write_images(folder, save, suffix, lens)
        entries = CAMERA | {"frames": frames(suffix)} | changes
        write(folder, {k: v for k, v in entries.items() if v is not None})

    return make


def with_frames(change: Callable[[Made, int], None], **changes: Any) -> Callable[[Path], None]:
    """A capture each frame of which is changed."""

    def make(folder: Path) -> None:
        listed = frames()
        for i, frame in enumerate(listed):
            change(frame, i)
        capture(frames=listed, **changes)(folder)

    return make


def with_poses(
    change: Callable[[NDArray[np.float64], int], NDArray[np.float64]], **changes: Any
) -> Callable[[Path], None]:
    """A capture whose poses are changed."""
    return with_frames(lambda frame, i: frame.update(transform_matrix=change(pose(i), i).tolist()), **changes)


def mode(name: str) -> Save:
    """Images of one of Pillow's modes."""
    return lambda image, path, _: image.convert(name).save(path)


def sixteen(scale: float, offset: int = 0) -> Save:
    """Gray images of 16 bits, of a part of the range."""

    def save(image: Image.Image, path: Path, _: int) -> None:
        values = np.asarray(image.convert("L")).astype(np.float64) * 256 * scale + offset
        Image.fromarray(values.astype(np.uint16)).save(path)

    return save


def floating(image: Image.Image, path: Path, _: int) -> None:
    """Gray images in floating point."""
    Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255).save(path)


def turned(orientation: int, pixels: bool) -> Save:
    """Images with an EXIF tag, whose pixels lie on their side or not."""

    def save(image: Image.Image, path: Path, _: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        (image.transpose(Image.Transpose.ROTATE_90) if pixels else image).save(path, quality=98, exif=exif)

    return save


def with_profile(image: Image.Image, path: Path, _: int) -> None:
    """Images whose profile swaps nothing, but is named otherwise than sRGB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    image.save(path, icc_profile=lab.tobytes())


def masked(values: Callable[[NDArray[np.uint8]], Image.Image], suffix: str = ".png") -> Callable[[Path], None]:
    """A capture whose masks show the left half."""

    def make(folder: Path) -> None:
        half = np.zeros((HEIGHT, WIDTH), np.uint8)
        half[:, : WIDTH // 2] = 255
        (folder / "masks").mkdir(parents=True)
        for i in range(COUNT):
            values(half).save(folder / "masks" / f"{i:03d}{suffix}")
        with_frames(lambda frame, i: frame.update(mask_path=f"masks/{i:03d}{suffix}"))(folder)

    return make


def backwards_palette(half: NDArray[np.uint8]) -> Image.Image:
    """A palette mask whose index 0 is white."""
    image = Image.new("P", half.shape[::-1])
    image.putdata([int(v == 0) for v in half.ravel()])
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


def raw(change: Callable[[str], bytes]) -> Callable[[Path], None]:
    """A capture whose JSON text is changed."""

    def make(folder: Path) -> None:
        capture()(folder)
        path = folder / "transforms.json"
        path.write_bytes(change(path.read_text()))

    return make


def split_capture(splits: dict[str, slice], suffix: str = ".jpg", **changes: Any) -> Callable[[Path], None]:
    """One file for each split."""

    def make(folder: Path) -> None:
        write_images(folder, lambda image, path, _: image.save(path), suffix)
        for split, part in splits.items():
            entries = CAMERA | {"camera_angle_x": ANGLE, "frames": frames(suffix)[part]} | changes
            write(folder, {k: v for k, v in entries.items() if v is not None}, f"transforms_{split}.json")

    return make


def points(folder: Path, text: str) -> None:
    """A PLY file of points."""
    header = "".join(f"property float {a}\n" for a in "xyz")
    count = len(text.splitlines())
    (folder / "points.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex {count}\n{header}end_header\n{text}")


def with_points(text: str) -> Callable[[Path], None]:
    """A capture that names points."""

    def make(folder: Path) -> None:
        capture(ply_file_path="points.ply")(folder)
        points(folder, text)

    return make


MODELS = {
    "SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "OPENCV_FISHEYE": 5,
    "FULL_OPENCV": 6, "FOV": 7, "SIMPLE_RADIAL_FISHEYE": 8, "RADIAL_FISHEYE": 9, "THIN_PRISM_FISHEYE": 10,
    "RAD_TAN_THIN_PRISM_FISHEYE": 11,
}  # fmt: skip


def colmap(
    model: str,
    rest: tuple[float, ...],
    lens: Lens | None = None,
    where: str = "sparse/0",
    sfm: bool = True,
    images: str = "images",
) -> Callable[[Path], None]:
    """A COLMAP model."""

    def make(folder: Path) -> None:
        write_images(folder, lens=lens)
        if images != "images":
            (folder / images).parent.mkdir(parents=True, exist_ok=True)
            (folder / "images").rename(folder / images)
        (folder / where).mkdir(parents=True, exist_ok=True)
        one = "SIMPLE" in model or model in ("RADIAL", "RADIAL_FISHEYE")
        parameters = [FOCAL, *([] if one else [FOCAL]), *CENTER, *rest]
        camera = struct.pack("<QiiQQ", 1, 1, MODELS[model], WIDTH, HEIGHT) + struct.pack(
            f"<{len(parameters)}d", *parameters
        )
        (folder / where / "cameras.bin").write_bytes(camera)
        data = struct.pack("<Q", COUNT)
        for i in range(COUNT):
            to_world = pose(i)
            to_world[:3, 1:3] *= -1
            rotation = to_world[:3, :3].T
            data += struct.pack("<i7di", i + 1, *quaternion(rotation), *(-rotation @ to_world[:3, 3]), 1)
            data += f"{i:03d}.png".encode() + b"\0" + struct.pack("<Q", 0)
        (folder / where / "images.bin").write_bytes(data)
        if sfm:
            body = b"".join(struct.pack("<QdddBBBdQ", i + 1, i, 0.0, 1.0, 9, 9, 9, 0.5, 0) for i in range(5))
            (folder / where / "points3D.bin").write_bytes(struct.pack("<Q", 5) + body)

    return make


def quaternion(rotation: NDArray[np.float64]) -> list[float]:
    """w, x, y, z of a rotation matrix: the eigenvector of the largest eigenvalue of Bar-Itzhack's matrix."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    matrix = np.array(
        [[a - e - i, b + d, c + g, h - f], [0, e - a - i, f + h, c - g], [0, 0, i - a - e, d - b], [0, 0, 0, a + e + i]]
    )
    values, vectors = np.linalg.eigh((matrix + np.triu(matrix, 1).T) / 3.0, UPLO="U")
    x, y, z, w = vectors[:, values.argmax()]
    return [w, x, y, z] if w >= 0 else [-w, -x, -y, -z]


def both_forms(folder: Path) -> None:
    """A COLMAP model with a text file that is out of date."""
    colmap("PINHOLE", ())(folder)
    (folder / "sparse/0/cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} 20 20 20 28\n")


def polycam(folder: Path) -> None:
    """A raw export of Polycam."""
    write_images(folder)
    (folder / "keyframes/cameras").mkdir(parents=True)


def instant_ngp(count: int) -> Callable[[Path], None]:
    """A capture of an angle and a few images."""

    def make(folder: Path) -> None:
        entries = {"fl_x": None, "fl_y": None, "camera_model": None, "camera_angle_x": ANGLE, "aabb_scale": 4}
        capture(frames=frames()[:count], **entries)(folder)

    return make


PRISM = (0.05, -0.01, 0.002, 0.001, 0.001, -0.001, 0.002, -0.001)
"""Of THIN_PRISM_FISHEYE: k1, k2, p1, p2, k3, k4, sx1, sy1."""
ARIA = (0.05, -0.01, 0.002, 0.0, 0.0, 0.0, 0.001, 0.001, 0.001, 0.0, -0.001, 0.0)
OFFSET = np.array([453212.0, 5412345.0, 512.0])


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
    "images only": Case(write_images, "images without poses"),
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


# ---- looking at them -------------------------------------------------------------------------------------------------


def look(folder: Path, method: str, gray: bool = False) -> Outcome:
    """Load a folder as `ns-train` does, and compare the colours with their rays.

    Args:
        folder: the data.
        method: one of `METHODS`.
        gray: whether the images are gray.
    """
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.utils.rich_utils import CONSOLE

    from ns_support.data.warnings import forget_warnings

    forget_warnings()
    config = copy.deepcopy(all_methods[method].pipeline.datamanager)
    config.data = folder
    if hasattr(config, "triangulated_points"):
        config.triangulated_points = 0
    # The terminal writes to whatever is the standard output; to set its file would last.
    said, quiet = io.StringIO(), CONSOLE.quiet
    sentence, error = "", None
    CONSOLE.quiet = True  # as `SharedTrainer` has it
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            error = mean_error(config.setup(device="cpu", test_mode="val"), gray)
    except UserError as refusal:
        sentence = str(refusal)
    finally:
        CONSOLE.quiet = quiet
    _, warning, rest = " ".join(said.getvalue().split()).partition("Warning:")
    return Outcome(error, sentence, warning + rest)


def mean_error(datamanager: Any, gray: bool) -> float:
    """Mean absolute difference between the training colours and those that their rays call for."""
    cameras = datamanager.train_dataset.cameras
    if hasattr(datamanager, "cached_train"):
        datamanager.next_train(0)
        batches = datamanager.cached_train
        bundles = [camera_rays(cameras[i]) for i in range(len(batches))]
        drawn = [
            (
                b.directions.reshape(-1, 3),
                batch["image"].reshape(-1, batch["image"].shape[-1]),
                torch.full((b.directions[..., 0].numel(),), i),
            )
            for i, (b, batch) in enumerate(zip(bundles, batches, strict=True))
        ]
    else:
        datamanager.train_pixel_sampler.set_num_rays_per_batch(4096)
        bundle, batch = datamanager.next_train(0)
        drawn = [(bundle.directions, batch["image"], batch["indices"][:, 0])]
    differences = []
    for directions, image, camera in drawn:
        rotations = cameras.camera_to_worlds[camera, :, :3]
        local = (directions[:, None] @ rotations)[:, 0].double().numpy()
        wanted = color_of(local)
        values = image[:, :3].double().numpy() / (255.0 if image.dtype == torch.uint8 else 1.0)
        if gray:
            wanted = np.repeat((wanted @ [0.299, 0.587, 0.114])[:, None], 3, -1)
            low, high = values.min(), values.max()
            if high - low < 0.5 or set(np.unique(values)) <= {0.0, 1.0}:
                # A part of the range, or two levels: what is brighter must be so.
                wanted = (
                    (wanted > 0.5).astype(float)
                    if high - low > 0.5
                    else low + (high - low) * (wanted - wanted.min()) / np.ptp(wanted)
                )
        differences.append(np.abs(values - wanted).mean(-1))
    return float(np.concatenate(differences).mean())


def verdict(outcome: Outcome, case: Case) -> str:
    """A cell of the table."""
    if outcome.error is None:
        return f"refused: {outcome.sentence}"
    right = "right" if outcome.error < RIGHT else "WRONG"
    return f"{right}, {outcome.error:.3f}" + (f"; {outcome.warnings}" if outcome.warnings else "")


def main(names: list[str]) -> None:
    """Print the table."""
    print("| case | " + " | ".join(METHODS) + " |\n|---|---|---|")
    for name in names or list(CASES):
        cells = []
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                CASES[name].make(Path(folder) / "scan")
                text = verdict(look(Path(folder) / "scan", method, CASES[name].gray), CASES[name])
                cells.append(text.replace(f"{folder}/", "").replace("|", "\\|"))
        same = " | ".join(cells) if cells[0] != cells[1] else f"{cells[0]} | the same"
        print(f"| {name} | {same} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
