"""SfM points of a PLY file, read without Open3D, which needs a library that few machines have (libusb)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ns_support.data.ply import Columns, read_ply
from ns_support.data.warnings import warn_once
from ns_support.errors import UserError
from ns_support.kernels.harmonics import Y0

_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_SPLAT_COLORS = ("f_dc_0", "f_dc_1", "f_dc_2")


class SfmPoints(NamedTuple):
    """Points in the coordinates of the file.

    Attributes:
        positions: [N, 3] float64.
        colors: [N, 3] uint8, or [0, 3] where the file has none.
    """

    positions: NDArray[np.float64]
    colors: NDArray[np.uint8]


def read_points(path: Path) -> SfmPoints | None:
    """The finite points of a PLY file; warnings say how many are not, and what is missing.

    Args:
        path: a PLY file with the vertex properties x, y and z, and perhaps colours: integers of 8 or 16 bits, floats
            in [0, 1], or 3D Gaussian splatting's f_dc_*.

    Returns:
        None without the file, or without a point in it.

    Raises:
        UserError: the file can't be read, or has no x, y and z.
    """
    if not path.is_file():
        warn_once(f"There is no {path}, which is named as the file of SfM points: going on without them.")
        return None
    columns = read_ply(path).columns
    missing = [axis for axis in "xyz" if axis not in columns]
    if missing:
        raise UserError(
            f"The PLY file {path} lacks the vertex properties {', '.join(missing)}: it holds no points. Correct or "
            "remove the entry that names it."
        )
    positions = np.stack([columns[axis].astype(np.float64) for axis in "xyz"], -1)
    colors = _colors(columns)
    finite = np.isfinite(positions).all(-1)
    if not finite.all():
        lost = len(finite) - int(finite.sum())
        warn_once(f"{lost} of the {len(finite)} points in {path} are not finite, and are left out.")
        positions, colors = positions[finite], colors[finite] if len(colors) else colors
    if len(positions) == 0:
        warn_once(f"There is no point in {path}: going on without SfM points.")
        return None
    return SfmPoints(positions, colors)


def in_scene(points: SfmPoints, transform: Tensor, scale: float) -> dict[str, Tensor]:
    """Points as nerfstudio's parsers hand them on.

    Args:
        points: in the coordinates of the data.
        transform: [3, 4] from there to the scene, and then
        scale: what the result is multiplied by.

    Returns:
        "points3D_xyz" [N, 3] float32 and "points3D_rgb" [N, 3] uint8.
    """
    matrix = transform.double()
    positions = torch.from_numpy(points.positions) @ matrix[:3, :3].T + matrix[:3, 3]
    return {"points3D_xyz": (positions * scale).float(), "points3D_rgb": torch.from_numpy(points.colors)}


def _colors(columns: Columns) -> NDArray[np.uint8]:
    names = next((names for names in _COLORS if all(name in columns for name in names)), None)
    if names is not None:
        values: NDArray[Any] = np.stack([columns[name] for name in names], -1)
        if values.dtype.kind == "f":
            # Some writers store 0..255 as floats.
            most = 1.0 if not len(values) or np.nanmax(values) <= 1.0 else 255.0
            return _as_bytes(values / most)
        if values.dtype.itemsize == 1:
            return values.astype(np.uint8)
        return (values // 257 if len(values) and values.max() > 255 else values).astype(np.uint8)
    if all(name in columns for name in _SPLAT_COLORS):
        return _as_bytes(0.5 + Y0 * np.stack([columns[name].astype(np.float64) for name in _SPLAT_COLORS], -1))
    return np.zeros((0, 3), np.uint8)


def _as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return (np.nan_to_num(values).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
