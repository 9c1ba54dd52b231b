"""A PLY file of Gaussians as a model that renders them, and where to look at it from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from ns_support.data.ply import Ply, read_ply
from ns_support.errors import UserError
from ns_support.viewer.opening import View
from raygauss_ns.casting import CastSettings
from raygauss_ns.color.harmonics import SH_DEGREE
from raygauss_ns.config import PUBLISHED_STEP_SIZE, RayGaussModelConfig
from raygauss_ns.gaussians.ply_formats import header_values, read_cloud
from raygauss_ns.gaussians.scene_scale import scene_unit
from raygauss_ns.model import RayGaussModel

Up: TypeAlias = Literal["x", "y", "z", "-x", "-y", "-z"]
Backdrop: TypeAlias = Literal["white", "black"]
_OURS = "written by raygauss-export"
_BULK = (0.05, 0.95)
"""Quantiles of the positions that a file's scene is taken to lie between: outliers do not count."""
_SOME = 100_000
"""Positions that are enough for the quantiles."""
_FIELD = math.radians(50.0)
"""Vertical field of view at first."""
_FILLS = 1.3
"""Distance from which the scene is looked at, as a multiple of that at which a ball around its bulk fills the view."""
_SLOPE = math.radians(20.0)
"""By how much the view looks down at first."""


class FileScene(NamedTuple):
    """A file's Gaussians, and a first view of them.

    Attributes:
        model: in evaluation mode; its viewer's controls start from the settings in the file's header, if it has any.
        view: the whole scene, seen from slightly above.
    """

    model: RayGaussModel
    view: View


def read_scene(path: Path, up: Up | None, background: Backdrop, device: torch.device) -> FileScene:
    """The scene of a PLY file.

    A file of `raygauss-export` says how its rays are sampled. For one of another program, lengths are taken from the
    bulk of the positions, as they are for a scene without cameras.

    Args:
        path: what `raygauss-export raygauss` or `splat` wrote, or a file of 3D Gaussian splatting.
        up: the axis that points upwards; None: z for files of `raygauss-export`, which are in nerfstudio's axes; else
            -y, as COLMAP's cameras have it, on which most other files are based.
        background: what is behind the Gaussians.
        device: to render on.

    Raises:
        UserError: the file is missing, is of neither kind, or has no Gaussians.
    """
    ply = read_ply(path)
    if not ply.columns or len(next(iter(ply.columns.values()))) == 0:
        raise UserError(f"The PLY file {path} has no Gaussians.")
    values = header_values(ply.comments)
    settings = _settings(values)
    unit = values.get("scene_unit", 0.0) if settings is not None else 0.0
    if not 0 < unit < math.inf:
        unit = scene_unit(_bulk(_positions(ply, path)), None)
    step = PUBLISHED_STEP_SIZE * unit if settings is None else settings.step
    # The samples of a ray must not miss a flat splat, as in training; a file of ours is rendered as it is.
    cloud = read_cloud(path, unit, least_scale=0.5 * step if settings is None else 0.0)
    box = _bulk(cloud.params["means"].detach())
    config = RayGaussModelConfig(
        scene_unit=unit,
        num_random=1,
        sh_degree=SH_DEGREE,
        num_lobes=cloud.params["sg_axes"].shape[1],
        background_color=background,
        **_lengths(settings, unit, values),
    )
    made = RayGaussModel(config, scene_box=SceneBox(box), num_train_data=1, metadata={})
    made.cloud = cloud
    made.update_to_step(made.total_steps)  # all of the colours
    axis = up or ("z" if _OURS in ply.comments else "-y")
    return FileScene(made.to(device).eval(), first_view(box, axis))


def _settings(values: dict[str, float]) -> CastSettings | None:
    """How a file of ours says that rays are sampled; None for another file, or if that makes no sense."""
    if any(name not in values for name in CastSettings._fields):
        return None
    numbers = {name: values[name] for name in CastSettings._fields if name != "samples_per_slab"}
    settings = CastSettings(**numbers, samples_per_slab=int(values["samples_per_slab"]))
    return settings if 0 < settings.step < math.inf and 0 < settings.density_threshold < math.inf else None


def _lengths(settings: CastSettings | None, unit: float, values: dict[str, float]) -> dict[str, Any]:
    """The configuration's fields for these settings, in units of u."""
    if settings is None:
        return {"step_size": PUBLISHED_STEP_SIZE}
    near = values.get("near_plane", 0.0) / unit
    return {
        "step_size": settings.step / unit,
        "density_threshold": settings.density_threshold * unit,
        "max_step": settings.max_step / unit,
        "near_plane": near,
        **{name: getattr(settings, name) for name in ("sample_offset", "transmittance_threshold", "samples_per_slab")},
        **{name: getattr(settings, name) for name in ("step_growth", "transmittance_exponent")},
    }


def _positions(ply: Ply, path: Path) -> Tensor:
    if not {"x", "y", "z"} <= ply.columns.keys():
        raise UserError(f"The PLY file {path} has no positions x, y, z.")
    return torch.stack([torch.from_numpy(ply.columns[name].astype("f4")) for name in "xyz"], -1)


def _bulk(positions: Tensor) -> Tensor:
    """[2, 3] corners of the box that the bulk of the positions [N, 3] is in; never flat."""
    finite = positions[positions.isfinite().all(-1)]
    some = finite[:: max(len(finite) // _SOME, 1)].double()
    if len(some) == 0:
        return torch.tensor([[-1.0] * 3, [1.0] * 3])
    low, high = torch.quantile(some, torch.tensor(_BULK).to(some), dim=0)
    least = float((high - low).max()) or 1.0
    middle, half = (low + high) / 2, ((high - low) / 2).clamp_min(0.05 * least)
    return torch.stack([middle - half, middle + half]).float()


def first_view(box: Tensor, up: str) -> View:
    """The whole of a box [2, 3], seen from slightly above.

    Args:
        box: corners (scene units).
        up: an axis and its sign, such as "-y".
    """
    upwards = _axis(up)
    # Seen from the negative side of the axis that follows: along y if z is up, as Blender's front view is.
    ahead = _axis("xyz"[("xyz".index(up[-1]) + 2) % 3])
    middle, radius = box.double().mean(0), 0.5 * float(torch.linalg.vector_norm(box[1] - box[0]))
    distance = _FILLS * radius / math.sin(_FIELD / 2)
    position = middle - distance * (math.cos(_SLOPE) * ahead - math.sin(_SLOPE) * upwards)
    return View(position, middle, upwards, _FIELD, 0.0)


def _axis(name: str) -> Tensor:
    direction: Sequence[float] = [float(letter == name[-1]) for letter in "xyz"]
    return torch.tensor(direction, dtype=torch.float64) * (-1.0 if name.startswith("-") else 1.0)
