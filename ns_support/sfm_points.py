"""SfM points of a PLY file, read without Open3D.

nerfstudio's parsers read them through Open3D, which wants the system's libusb: on a machine without, every scene that
`ns-process-data` made would end in an `ImportError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import Blender
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from torch import Tensor

from ns_support.ply import Columns, read_ply
from ns_support.terminal import warn

_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))


def read_points(path: Path) -> tuple[Tensor, Tensor] | None:
    """Positions and colours of a file's points.

    Points with a coordinate that is not finite are left out, and counted in a warning.

    Args:
        path: a PLY file with the properties x, y and z, and perhaps a colour: red, green and blue, of 8 or 16 bits or
            in [0, 1].

    Returns:
        Positions [N, 3] float32 and colours [N, 3] uint8 ([0, 3] without); None without points, or without the file,
        which a warning then says.

    Raises:
        UserError: the file can't be read.
    """
    if not path.is_file():
        warn(f"There is no {path}, which the scene names for its SfM points: going on without.")
        return None
    columns = read_ply(path).columns
    if any(axis not in columns for axis in "xyz") or len(columns["x"]) == 0:
        warn(f"{path} holds no points with x, y and z: going on without SfM points.")
        return None
    positions = np.stack([columns[axis].astype(np.float32) for axis in "xyz"], -1)
    colors = _colors(columns)
    finite = np.isfinite(positions).all(-1)
    if not finite.all():
        warn(f"{int((~finite).sum()):,} of the {len(finite):,} points in {path} are not finite, and left out.")
        positions, colors = positions[finite], colors[finite] if len(colors) else colors
    return (torch.from_numpy(positions), torch.from_numpy(colors)) if len(positions) else None


def _colors(columns: Columns) -> np.ndarray[Any, np.dtype[np.uint8]]:
    names = next((names for names in _COLORS if all(name in columns for name in names)), None)
    if names is None:
        return np.zeros((0, 3), np.uint8)
    values: np.ndarray[Any, np.dtype[Any]] = np.stack([columns[name] for name in names], -1)
    if values.dtype.kind == "f":
        return (values.clip(0, 1) * 255).round().astype(np.uint8)
    return (values if values.dtype.itemsize == 1 else values // 256).astype(np.uint8)


class NerfstudioPoints(Nerfstudio):
    """nerfstudio's parser for its own format, which reads points itself."""

    def _load_3D_points(  # noqa: N802 - nerfstudio's
        self, ply_file_path: Path, transform_matrix: Tensor, scale_factor: float
    ) -> dict[str, Tensor] | None:
        found = read_points(ply_file_path)
        if found is None:
            return None
        positions = (positions_in(found[0], transform_matrix)) * scale_factor
        return {"points3D_xyz": positions, "points3D_rgb": found[1]}


class BlenderPoints(Blender):
    """nerfstudio's parser for Blender's format, which reads points itself."""

    def _load_3D_points(self, ply_file_path: Path) -> dict[str, Tensor]:  # noqa: N802 - nerfstudio's
        found = read_points(ply_file_path)
        return {} if found is None else {"points3D_xyz": found[0] * self.scale_factor, "points3D_rgb": found[1]}


def positions_in(points: Tensor, transform: Tensor) -> Tensor:
    """Points [N, 3] moved by a matrix [3 or 4, 4]: R p + t."""
    return points @ transform[:3, :3].T + transform[:3, 3]


def reading_points_ourselves(config: DataParserConfig) -> DataParserConfig:
    """Have a parser's configuration make the parser that reads points without Open3D.

    Args:
        config: changed, unless it is one of another parser.
    """
    own = {Nerfstudio: NerfstudioPoints, Blender: BlenderPoints}.get(config._target)
    if own is not None:
        config._target = own
    return config
