"""COLMAP's cameras (https://colmap.github.io/cameras.html) as nerfstudio's camera models."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nerfstudio.cameras.cameras import CameraType
from numpy.typing import NDArray

from ns_support.data.formats.lens_entries import LensEntries
from ns_support.data.warnings import warn_once
from ns_support.errors import UserError
from ns_support.lenses.distortion import plane_map

_MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
)
"""Names and parameter counts, in the order of COLMAP's model numbers."""
_COUNTS = dict(_MODELS) | {"SIMPLE_FISHEYE": 3, "FISHEYE": 4}
_ONE_FOCAL = {"SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE"}
_MOST_OFF = 0.1
"""Maximum error of a fitted lens (pixels)."""


def read_colmap_cameras(folder: Path) -> dict[int, LensEntries]:
    """The cameras of a model by their numbers.

    Args:
        folder: contains cameras.bin or cameras.txt. If it contains both, the binary file is read, with a warning.

    Raises:
        UserError: there is neither file, it is damaged, or a camera model is not supported.
    """
    binary, text = folder / "cameras.bin", folder / "cameras.txt"
    if binary.is_file():
        if text.is_file():
            warn_once(f"The model in {folder} is there in two forms: cameras.bin is read, not cameras.txt.")
        return _checked(_read(binary), binary)
    if text.is_file():
        return _checked(_read(text), text)
    raise UserError(f"There is no cameras.bin or cameras.txt in {folder}.")


def refuse_longer(path: Path) -> None:
    """Refuse an images.bin or points3D.bin whose rows claim more than the file holds, before memory is taken for them.

    Args:
        path: the file. The layout is that of https://colmap.github.io/format.html.

    Raises:
        ValueError: it is cut off, or the number of an entry's matches is larger than the rest of the file.
    """
    is_images = path.stem == "images"
    fixed, match = (64, 24) if is_images else (43, 8)
    left = path.stat().st_size
    with path.open("rb") as file:
        (count,) = struct.unpack("<Q", file.read(8))
        for i in range(count):
            file.seek(fixed, os.SEEK_CUR)
            while is_images and file.read(1) not in (b"\0", b""):  # the name
                pass
            number = file.read(8)
            if len(number) < 8:
                raise ValueError(f"it ends in entry {i:,} of {count:,}")
            (matches,) = struct.unpack("<Q", number)
            if matches * match > left - file.tell():
                raise ValueError(f"entry {i:,} claims {matches:,} matches")
            file.seek(matches * match, os.SEEK_CUR)


_Camera = tuple[int, str, int, int, list[float]]


def _read(path: Path) -> list[_Camera]:
    try:
        return _read_binary(path) if path.suffix == ".bin" else _read_text(path)
    except UserError:
        raise
    except (OSError, struct.error, ValueError, IndexError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is damaged or cut off ({' '.join(str(error).split())}): export it anew.") from error


def _read_binary(path: Path) -> list[_Camera]:
    data = path.read_bytes()
    (count,) = struct.unpack_from("<Q", data)
    place, found = 8, []
    for _ in range(min(count, len(data))):
        number, model, width, height = struct.unpack_from("<iiQQ", data, place)
        if not 0 <= model < len(_MODELS):
            raise UserError(_unsupported(path, f"number {model}"))
        name, parameters = _MODELS[model]
        found.append((number, name, width, height, list(struct.unpack_from(f"<{parameters}d", data, place + 24))))
        place += 24 + 8 * parameters
    return found


def _read_text(path: Path) -> list[_Camera]:
    found = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            found.append((int(words[0]), words[1], int(words[2]), int(words[3]), [float(word) for word in words[4:]]))
    return found


def _unsupported(path: Path, model: str) -> str:
    return (
        f"{path} has a camera of the model {model}, which is not supported: undistort the images with "
        "`colmap image_undistorter`, or calibrate with OPENCV or OPENCV_FISHEYE."
    )


def _checked(cameras: list[_Camera], path: Path) -> dict[int, LensEntries]:
    if not cameras:
        raise UserError(f"{path} has no camera.")
    return {number: _lens(name, width, height, p, path) for number, name, width, height, p in cameras}


def _lens(name: str, width: int, height: int, parameters: list[float], path: Path) -> LensEntries:
    if name not in _COUNTS or name == "FOV":
        raise UserError(_unsupported(path, name))
    if len(parameters) != _COUNTS[name] or not np.isfinite(parameters).all():
        raise UserError(f"{path} has a {name} with the parameters {parameters}, not {_COUNTS[name]} finite ones.")
    focal = 1 if name in _ONE_FOCAL else 2
    fx, fy = parameters[0], parameters[focal - 1]
    cx, cy = parameters[focal : focal + 2]
    rest = parameters[focal + 2 :]
    if not (fx > 0 and fy > 0 and width > 0 and height > 0):
        raise UserError(f"{path} has a camera of {width} x {height} and focal lengths {fx:g}, {fy:g}: correct it.")

    def lens(kind: CameraType, distortion: Sequence[float]) -> LensEntries:
        return LensEntries(kind, fx, fy, cx, cy, width, height, tuple(distortion))

    if name == "FULL_OPENCV":
        k1, k2, p1, p2, k3, *rational = rest
        if any(rational):
            raise UserError(_unsupported(path, "FULL_OPENCV with rational terms (k4, k5, k6)"))
        return lens(CameraType.PERSPECTIVE, (k1, k2, k3, 0.0, p1, p2))
    if name == "RAD_TAN_THIN_PRISM_FISHEYE":
        return lens(CameraType.FISHEYE624, rest)
    if name == "THIN_PRISM_FISHEYE":
        return lens(CameraType.FISHEYE624, _fitted(rest, (fx, fy), (cx, cy), (width, height), path))
    if name == "OPENCV_FISHEYE":
        return lens(CameraType.FISHEYE, (*rest, 0.0, 0.0))
    if name == "OPENCV":
        k1, k2, p1, p2 = rest
        return lens(CameraType.PERSPECTIVE, (k1, k2, 0.0, 0.0, p1, p2))
    kind = CameraType.FISHEYE if "FISHEYE" in name else CameraType.PERSPECTIVE
    return lens(kind, (*rest, *[0.0] * (6 - len(rest))))


def _fitted(
    given: list[float], focal: tuple[float, float], center: tuple[float, float], size: tuple[int, int], path: Path
) -> tuple[float, ...]:
    """The FISHEYE624 nearest to a THIN_PRISM_FISHEYE, which applies decentring before and not after the radial part.

    Without decentring and prism the two models are equal.
    """
    k1, k2, p1, p2, k3, k4, sx, sy = given
    start = np.array([k1, k2, k3, k4, 0.0, 0.0, p2, p1, sx, 0.0, sy, 0.0])
    if not any((p1, p2, sx, sy)):
        return tuple(start.tolist())
    columns, rows = (np.linspace(0.5, n - 0.5, 25) for n in size)
    grid = np.stack(np.meshgrid((columns - center[0]) / focal[0], (rows - center[1]) / focal[1]), -1).reshape(-1, 2)
    exact = plane_map((k1, k2, k3, k4), (p1, p2), (sx, 0.0, sy, 0.0), limit=np.pi)
    points, exist = exact.inverse(torch.from_numpy(grid))
    plane, wanted = points[exist].numpy(), grid[exist.numpy()]

    from scipy.optimize import least_squares  # imported late: it takes a second, and such lenses are rare

    def residuals(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return (_fisheye624(plane, values) - wanted).ravel()

    found = least_squares(residuals, start, xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    off = float(np.abs(residuals(found).reshape(-1, 2) * np.array(focal)).max())
    if off > _MOST_OFF:
        raise UserError(_unsupported(path, f"THIN_PRISM_FISHEYE, {off:.2g} pixels off the nearest FISHEYE624"))
    warn_once(f"The THIN_PRISM_FISHEYE in {path} is taken for the nearest FISHEYE624, {off:.1g} pixels off at most.")
    return tuple(found.tolist())


def _fisheye624(plane: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distorted positions of points [N, 2] of the undistorted plane (Project Aria's model)."""
    squared = (plane**2).sum(-1, keepdims=True)
    radial = plane * (1.0 + sum(k * squared ** (i + 1) for i, k in enumerate(values[:6])))
    s = (radial**2).sum(-1, keepdims=True)
    p, prism = values[6:8], values[8:]
    across = s * prism[[0, 2]] + s * s * prism[[1, 3]]
    return radial + 2.0 * (radial @ p)[:, None] * radial + s * p + across
