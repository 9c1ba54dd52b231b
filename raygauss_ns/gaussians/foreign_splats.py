"""What other programs' files of Gaussians hold, brought to the form that `raygauss_ns.gaussians.ply_formats` reads.

Whatever is left out or changed is said in one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ns_support.data.ply import Columns
from ns_support.data.warnings import warn_once
from ns_support.errors import UserError
from ns_support.kernels.harmonics import Y0
from ns_support.lenses.lens import Lens
from raygauss_ns.gaussians.projection import in_camera_space

SCALES = tuple(f"scale_{i}" for i in range(3))
ROTATION = tuple(f"rot_{i}" for i in range(4))
BASE = tuple(f"f_dc_{i}" for i in range(3))
_OPAQUE = 50.0
"""Logit of an opacity of 1: exp(-50) of the light passes."""
_FLATNESS = 0.01
"""Thickness of a flat splat, as a share of its smaller scale."""
_COUNTS = (0, 9, 24, 45)
"""How many f_rest_* there are for harmonics of degree 0 to 3."""
_SOME_POINTS, _SOME_CAMERAS = 20_000, 100


def is_splat(columns: Mapping[str, object]) -> bool:
    """Whether a file's properties are those of 3D Gaussian splatting, whatever else it holds."""
    return "opacity" in columns and "scale_0" in columns and "log_scale_0" not in columns


def refuse_packed(columns: Mapping[str, object], path: Path) -> None:
    """Refuse a file of packed Gaussians.

    Raises:
        UserError: names the way out.
    """
    if "packed_position" in columns:
        raise UserError(f"The PLY file {path} is compressed; export it from SuperSplat as an uncompressed PLY.")


def completed(columns: Columns, path: Path) -> Columns:
    """A splat's columns with those put in that flat ones, and those with plain colours, do not have."""
    complete = dict(columns)
    if "scale_2" not in complete and {"scale_0", "scale_1"} <= set(complete):
        smaller = np.minimum(_column(complete, "scale_0"), _column(complete, "scale_1"))
        complete["scale_2"] = smaller + math.log(_FLATNESS)
        warn_once(f"The Gaussians in {path} are flat (2D): they get {_FLATNESS:g} of their smaller scale as thickness.")
    if "f_dc_0" not in complete and {"red", "green", "blue"} <= set(complete):
        for name, color in zip(BASE, ("red", "green", "blue"), strict=True):
            values = complete[color]
            most = 1.0 if values.dtype.kind == "f" else float(2 ** (8 * values.dtype.itemsize) - 1)
            complete[name] = (values.astype(np.float64) / most - 0.5) / Y0
    return complete


def count_of_rest(columns: Mapping[str, object], path: Path) -> int:
    """How many f_rest_* a splat has.

    Raises:
        UserError: there is a gap in their numbers, or their number is of no degree up to 3.
    """
    numbers = sorted(int(name[7:]) for name in columns if name.startswith("f_rest_") and name[7:].isdigit())
    absent = [i for i in range(len(numbers)) if i not in set(numbers)]
    if absent:
        raise UserError(f"The PLY file {path} lacks the vertex property f_rest_{absent[0]}.")
    if len(numbers) not in _COUNTS:
        raise UserError(f"The PLY file {path} has {len(numbers)} properties f_rest_*; it must be 0, 9, 24 or 45.")
    return len(numbers)


def sound_rows(columns: Columns, names: Sequence[str], rotation: Sequence[str], path: Path) -> Columns:
    """Columns without the rows that are no Gaussians, and with rotations for those that have none.

    Args:
        columns: [N] each.
        names: those that must be finite; an opacity of infinity is opaque or absent.
        rotation: the four of the quaternion.
        path: the file, for messages.
    """
    values = {name: _column(columns, name) for name in names}
    if "opacity" in values:
        values["opacity"] = np.where(np.isnan(values["opacity"]), np.nan, values["opacity"].clip(-1e4, 1e4))
        values["opacity"] = np.where(np.isposinf(_column(columns, "opacity")), _OPAQUE, values["opacity"])
    stacked = np.stack(list(values.values()), -1)
    finite = np.isfinite(stacked).all(-1)
    quats = np.stack([values[name] for name in rotation], -1)
    turned = (quats != 0).any(-1)
    # Some programs fill a file up with rows of zeros.
    empty = ~(stacked != 0).any(-1) & (len(stacked) > 1)
    kept = finite & ~empty
    if not finite.all():
        warn_once(f"{int((~finite).sum())} of the {len(finite)} Gaussians in {path} are not finite, and are left out.")
    if empty.any():
        warn_once(f"{int(empty.sum())} of the {len(empty)} Gaussians in {path} are rows of zeros, and are left out.")
    if len(kept) and not kept.any():
        raise UserError(
            f"None of the {len(kept)} rows in the PLY file {path} is a Gaussian: they are zeros or not finite."
        )
    without = kept & ~turned
    if without.any():
        warn_once(
            f"{int(without.sum())} of the {len(kept)} Gaussians in {path} have the rotation 0 0 0 0: taken for none."
        )
        values[rotation[0]] = np.where(without, 1.0, values[rotation[0]])
    return {name: column[kept] for name, column in (dict(columns) | values).items()}


def with_filter(depths: Tensor, log_scales: Tensor, columns: Columns, path: Path) -> tuple[Tensor, Tensor]:
    """Optical depths [N] and log scales [N, 3] with Mip-Splatting's 3D filter in them (Yu et al. 2024, equation 9).

    A Gaussian of variances s^2 becomes one of s^2 + f^2, and as opaque as keeps its integral: times the root of the
    ratio of the products.
    """
    if "filter_3D" not in columns:
        return depths, log_scales
    squared = torch.from_numpy(_column(columns, "filter_3D")).double().nan_to_num()[:, None] ** 2
    scales = torch.exp(2.0 * log_scales)
    wider = 0.5 * torch.log(scales + squared)
    opacities = -torch.expm1(-depths) * torch.exp((log_scales - wider).sum(-1))
    warn_once(f"The 3D filter of Mip-Splatting in {path} (filter_3D) is put into the Gaussians' scales and opacities.")
    return -torch.log1p(-opacities.clamp_max(-math.expm1(-_OPAQUE))), wider


def tell_what_is_cut(rest: Tensor, kept: int, sh_degree: int, path: Path) -> None:
    """Warn if harmonics are cut off.

    Args:
        rest: [N, B, 3] of degree 1 and more.
        kept: how many of the B there is room for.
        sh_degree: up to which degree.
        path: the file.
    """
    if kept < rest.shape[1] and bool((rest[:, kept:] != 0).any()):
        degree = math.isqrt(rest.shape[1] + 1) - 1
        warn_once(
            f"The colours in {path} have harmonics of degree {degree}; those above degree {sh_degree} "
            "(--pipeline.model.sh-degree) are left out."
        )


def tell_if_unseen(means: Tensor, world_to_cameras: Tensor, lenses: Sequence[Lens], path: Path) -> None:
    """Warn if no camera has any of the positions [N, 3] in its image.

    Args:
        means: positions (scene units); of many only some are looked at, as of cameras.
        world_to_cameras: [C, 3, 4].
        lenses: C lenses.
        path: the file that the positions are from.
    """
    points = means.detach()[:: max(len(means) // _SOME_POINTS, 1)].double()
    every = -(-len(lenses) // _SOME_CAMERAS) or 1
    for pose, lens in zip(world_to_cameras[::every], lenses[::every], strict=True):
        if bool(lens.project(in_camera_space(points, pose.double())).seen.any()):
            return
    if lenses:
        warn_once(
            f"No training camera sees any of the {len(means)} Gaussians in {path}: they must be in the coordinates of "
            "nerfstudio's scene, which dataparser_transforms.json leads to, and of its size."
        )


def _column(columns: Columns, name: str) -> NDArray[np.float64]:
    return columns[name].astype(np.float64)
