"""Splats as the columns of a file, and files in which they take less space than in PLY.

`.spz` is written by gsply and `.splat` by ply2splat, both of which convert a PLY file; they are installed with
`pip install 'raygauss-hardmine[formats]'`.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ns_support.data.ply import Columns, write_ply
from ns_support.errors import UserError
from ns_support.runs.safe_files import replaced
from raygauss_ns.color.harmonics import SH_BASES
from raygauss_ns.gaussians.foreign_splats import BASE, ROTATION, SCALES
from raygauss_ns.splatting.projection import Splats

ENDINGS = (".ply", ".spz", ".splat")
"""Endings of the files that can be written."""
_PACKAGES = {".spz": "gsply", ".splat": "ply2splat"}
_LOST = {
    ".ply": "",
    ".spz": " Rounded for .spz: positions to 1/4096 of a scene unit, log scales to 1/16, opacities and colours to 8 "
    "bits, rotations to 10 bits for each component.",
    ".splat": " Lost in .splat: the colours' dependence on the direction. Rounded: opacities, colours and rotations to "
    "8 bits.",
}


def splats_of(columns: Columns) -> Splats:
    """A file's columns, as `ply_formats.splat_columns` makes them, as splats with harmonics up to degree 2."""

    def stacked(names: Sequence[str]) -> Tensor:
        return torch.from_numpy(np.stack([columns[name] for name in names], -1).astype(np.float32))

    count = sum(name.startswith("f_rest_") for name in columns)
    rest = stacked([f"f_rest_{i}" for i in range(count)]).view(-1, 3, count // 3).transpose(1, 2)
    opacities = stacked(["opacity"])[:, 0]
    bands = rest[:, : SH_BASES - 1].contiguous()
    return Splats(stacked(tuple("xyz")), stacked(SCALES), stacked(ROTATION), opacities, stacked(BASE), bands)


def fitted_columns(columns: Columns, splats: Splats) -> Columns:
    """The columns of a file with other values for its splats, in the same order.

    Args:
        columns: of N splats.
        splats: N, on any device.
    """
    host = Splats(*(value.detach().cpu() for value in splats))
    fitted = dict(columns)
    values = [
        (tuple("xyz"), host.means),
        (SCALES, host.log_scales),
        (ROTATION, normalize(host.quats, dim=-1)),
        (("opacity",), host.logits[:, None]),
        (BASE, host.sh_base),
    ]
    step = sum(name.startswith("f_rest_") for name in columns) // 3
    for band in range(host.sh_rest.shape[1]):
        values.append((tuple(f"f_rest_{channel * step + band}" for channel in range(3)), host.sh_rest[:, band]))
    for names, tensor in values:
        fitted |= {name: tensor[:, i].numpy() for i, name in enumerate(names)}
    return fitted


def write_splats(path: Path, columns: Columns, comments: Sequence[str]) -> str:
    """Write a file of splats in the format that its ending names.

    Args:
        path: ends in one of `ENDINGS`.
        columns: of the PLY file.
        comments: for its header; the other formats have none.

    Returns:
        What the format loses, as a sentence after a space; "" for PLY.

    Raises:
        UserError: the package that writes it is not installed, or it can't be written; an existing file is unchanged.
    """
    ending = path.suffix.lower()
    if ending == ".ply":
        write_ply(path, columns, comments)
        return ""
    package = _package(ending)
    with tempfile.TemporaryDirectory() as folder:
        ply = Path(folder) / "splat.ply"
        write_ply(ply, columns)
        with replaced(path) as draft:
            try:
                if ending == ".spz":
                    package.write_spz(draft, package.plyread(ply))
                else:
                    package.convert(str(ply), str(draft))
            except (ValueError, RuntimeError) as error:
                raise UserError(f"{path} could not be written by {_PACKAGES[ending]}: {error}.") from error
    return _LOST[ending]


def require_format(path: Path) -> None:
    """Refuse a format whose package is not installed, before anything is computed for the file.

    Raises:
        UserError: says what to install.
    """
    if path.suffix.lower() != ".ply":
        _package(path.suffix.lower())


def _package(ending: str) -> Any:
    name = _PACKAGES[ending]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{ending} files are written by {name}, which is not installed: pip install "
            "'raygauss-hardmine[formats]', or write a PLY file."
        ) from error
