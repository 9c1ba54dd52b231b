"""Reading and writing a cloud of Gaussians as PLY files.

Two formats store a cloud. A third, `point_columns`, is for programs that only need positions and colours.

**raygauss** (`cloud_columns`) is exact: a double for each density, a float for each other parameter, under descriptive
names. Lengths are in scene units.

    x y z                              mean mu
    log_scale_0..2                     log s along the principal axes
    quat_w quat_x quat_y quat_z        rotation, of any length
    density                            peak density sigma (1/length)
    sh_{i}_{r,g,b}                     harmonics, i = 0 for degree 0, then as in `raygauss_ns.color.api`
    sg_{j}_amplitude_{r,g,b}           lobes: a_j,
    sg_{j}_raw_sharpness               lambda_j before the softplus,
    sg_{j}_axis_{x,y,z}                n_j before it is normalised

The header's comments contain the scene scale u and the settings that rays are sampled with, one `name value` per line.

**splat** (`splat_columns`) is the format of 3D Gaussian splatting (Kerbl et al. 2023), which common viewers open. It is
an approximation in three respects:

- *Density becomes opacity.* A splat has the same opacity from all sides, but a Gaussian of density sigma has, along a
  line in direction d through its centre, the optical depth

      tau(d) = integral sigma exp(-|A d|^2 t^2 / 2) dt = sqrt(2 pi) sigma / |A d|,   A = diag(1/s) R^T.

  In an image it is weighted by area: from d the Gaussian covers an area proportional to |A d|. With that weight, its
  mean optical depth over all directions is sqrt(2 pi) sigma h with 1 / h = E|A d|. By Cauchy's theorem E|A d| is the
  surface of the ellipsoid with half axes s, divided by 4 pi s_1 s_2 s_3. With Thomsen's formula for that surface (error
  below 1.1 %) h is the power mean of the scales:

      h = (mean of s_i^-p)^(-1/p),   p = 1.6075,          opacity = 1 - exp(-tau),   tau = sqrt(2 pi) sigma h.

  Averaged over directions, an optically thin Gaussian (tau << 1) then absorbs as much light as before. The scale along
  any single axis in place of h would not achieve that: a flat Gaussian is seen along its shortest axis only when it
  faces the camera (this mean is twice as deep), and along its longest hardly ever. The format stores the opacity's
  logit, log(exp(tau) - 1), from which softplus recovers tau exactly.
- *Spherical Gaussians become harmonics*: each is projected on degrees 0 to 2, which is its best approximation in the
  mean square over all directions (the Funk-Hecke formula). Specular detail is lost.
- Splats are flattened onto the image and sorted by their centres, whereas densities add up where Gaussians overlap. A
  viewer also clamps colours at 0.

Reading a splat file inverts the first step: sigma = tau / (sqrt(2 pi) h). Harmonics of degree 3 are dropped, with a
warning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize, softplus

from ns_support.data.ply import Columns, Ply, read_ply
from ns_support.data.warnings import warn_once
from ns_support.errors import UserError
from ns_support.kernels.harmonics import Y0
from raygauss_ns.color.harmonics import SH_DEGREE, sh_basis
from raygauss_ns.color.reference import ColorBasis
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.foreign_splats import (
    BASE,
    ROTATION,
    SCALES,
    completed,
    count_of_rest,
    is_splat,
    refuse_packed,
    sound_rows,
    tell_what_is_cut,
    with_filter,
)
from raygauss_ns.gaussians.initialization import StartPoints
from raygauss_ns.gaussians.optics import densities_of_depths, optical_depths

_ROWS_AT_ONCE = 1 << 18
_AXES = ("x", "y", "z")
_QUAT = tuple(f"quat_{letter}" for letter in "wxyz")
_LOG_SCALES = tuple(f"log_scale_{i}" for i in range(3))
_CHANNELS = "rgb"
_SPLAT_REST = 15
"""Harmonics of degree 1 to 3."""
_RAYGAUSS_NAMES = (*_AXES, *_LOG_SCALES, *_QUAT, "density", *(f"sh_0_{c}" for c in _CHANNELS))
_SPLAT_NAMES = (*_AXES, *BASE, "opacity", *SCALES, *ROTATION)


# ---- the physics of the conversion -----------------------------------------------------------------------------------


def lobes_as_harmonics(basis: ColorBasis) -> Tensor:
    """The harmonics of degree 0 to 2 that best approximate the colours, in the mean square over all directions.

    A lobe a exp(lambda (d . n - 1)) has by Funk and Hecke's formula, for degree l, the coefficients a k_l Y_lm(n) with
    k_l = 2 pi integral_{-1}^{1} exp(lambda (t - 1)) P_l(t) dt, here by Gauss-Legendre quadrature.

    Returns:
        [N, 9, 3] float64, degree 0 first, without the colour's constant 0.5.
    """
    # In parts, because the quadrature takes a kilobyte per Gaussian.
    parts = zip(*(field.split(_ROWS_AT_ONCE) for field in basis), strict=True)
    return torch.cat([_lobes_as_harmonics(ColorBasis(*part)) for part in parts])


def _lobes_as_harmonics(basis: ColorBasis) -> Tensor:
    n, bands = basis.sh_rest.shape[:2]
    harmonics = torch.zeros(n, (SH_DEGREE + 1) ** 2, 3, dtype=torch.float64)
    harmonics[:, 0], harmonics[:, 1 : 1 + bands] = basis.sh_base, basis.sh_rest
    t, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(64))
    legendre = torch.stack([torch.ones_like(t), t, 1.5 * t * t - 0.5], -1)
    quadrature = 2 * math.pi * weights[:, None] * legendre
    degrees = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])
    for amplitude, raw, axis in zip(
        basis.sg_amplitudes.unbind(1), basis.sg_sharpness.unbind(1), basis.sg_axes.unbind(1), strict=True
    ):
        values = torch.exp(softplus(raw.double())[:, None] * (t - 1.0))
        zonal = (values @ quadrature)[:, degrees] * sh_basis(normalize(axis.double(), dim=-1), SH_DEGREE)
        harmonics += zonal[..., None] * amplitude.double()[:, None]
    return harmonics


# ---- writing ---------------------------------------------------------------------------------------------------------


def cloud_columns(cloud: GaussianCloud) -> Columns:
    """All parameters of a cloud under descriptive names: the lossless format."""
    kept = _finite(cloud)
    p = {name: parameter.detach().cpu()[kept] for name, parameter in cloud.params.items()}
    columns: Columns = {}
    columns |= _named(_AXES, p["means"])
    columns |= _named(_LOG_SCALES, p["scales"])
    columns |= _named(_QUAT, p["quats"])
    # As a double, so that the unit can be divided out here and multiplied in again to the same float.
    columns["density"] = (p["densities"].double() / cloud.unit).numpy()
    harmonics = torch.cat([p["sh_base"][:, None], p["sh_rest"]], 1)
    for i in range(harmonics.shape[1]):
        columns |= _named([f"sh_{i}_{c}" for c in _CHANNELS], harmonics[:, i])
    for j in range(p["sg_axes"].shape[1]):
        columns |= _named([f"sg_{j}_amplitude_{c}" for c in _CHANNELS], p["sg_amplitudes"][:, j])
        columns[f"sg_{j}_raw_sharpness"] = p["sg_sharpness"][:, j].numpy()
        columns |= _named([f"sg_{j}_axis_{a}" for a in _AXES], p["sg_axes"][:, j])
    return columns


def splat_columns(cloud: GaussianCloud, density_threshold: float) -> Columns:
    """The cloud in the format of 3D Gaussian splatting; this module's docstring says what is lost.

    Args:
        cloud: the Gaussians.
        density_threshold: density cutoff, up to which a Gaussian is culled (1/length).

    Returns:
        x y z, nx ny nz (0), f_dc_0..2, f_rest_0..44 (all of red, then green, then blue; degree 3, which some readers
        require, is 0), opacity (logit), scale_0..2 (log), rot_0..3 (unit quaternion, w first); float32.
    """
    gaussians, log_scales, harmonics = _alive(cloud, density_threshold)
    depths = optical_depths(gaussians["densities"].double(), log_scales.double())
    # log(exp(tau) - 1) without overflow.
    logits = depths + torch.log(-torch.expm1(-depths))
    columns: Columns = {}
    columns |= _named(_AXES, gaussians["means"])
    columns |= _named([f"n{a}" for a in _AXES], torch.zeros_like(gaussians["means"]))
    columns |= _named(BASE, harmonics[:, 0].float())
    rest = torch.zeros(len(harmonics), 3, _SPLAT_REST)
    rest[:, :, : harmonics.shape[1] - 1] = harmonics[:, 1:].float().transpose(1, 2)
    rest = rest.flatten(1)
    columns |= _named([f"f_rest_{i}" for i in range(rest.shape[1])], rest)
    columns["opacity"] = logits.float().numpy()
    columns |= _named(SCALES, log_scales)
    columns |= _named(ROTATION, normalize(gaussians["quats"], dim=-1))
    return columns


def point_columns(cloud: GaussianCloud, density_threshold: float) -> Columns:
    """The Gaussians' centres and their mean colours over all directions: x y z float32, red green blue uint8.

    Args:
        cloud: the Gaussians.
        density_threshold: density cutoff, up to which a Gaussian is culled (1/length).
    """
    gaussians, _, harmonics = _alive(cloud, density_threshold)
    colors = ((0.5 + Y0 * harmonics[:, 0]).clamp(0.0, 1.0) * 255).round().to(torch.uint8)
    columns: Columns = {}
    columns |= _named(_AXES, gaussians["means"])
    columns |= _named(["red", "green", "blue"], colors)
    return columns


def _alive(cloud: GaussianCloud, density_threshold: float) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The Gaussians above the density cutoff, their log scales, and their colours as harmonics."""
    gaussians = {name: value.detach().cpu() for name, value in cloud.gaussians()._asdict().items()}
    keep = (gaussians["densities"] > density_threshold) & _finite(cloud)
    gaussians["quats"] = _with_rotations(gaussians["quats"])
    basis = ColorBasis(*(value.detach().cpu()[keep] for value in cloud.color_basis()))
    log_scales = cloud.params["scales"].detach().cpu()[keep]
    return {name: value[keep] for name, value in gaussians.items()}, log_scales, lobes_as_harmonics(basis)


def _finite(cloud: GaussianCloud) -> Tensor:
    """[N] bool, which Gaussians have only finite parameters; a warning counts the others."""
    parameters = [parameter.detach().cpu().flatten(1) for parameter in cloud.params.values() if parameter.ndim > 1]
    densities = cloud.params["densities"].detach().cpu().view(-1, 1)
    finite = torch.cat([*parameters, densities], -1).isfinite().all(-1)
    if not bool(finite.all()):
        warn_once(f"{int((~finite).sum())} of the {len(finite)} Gaussians are not finite, and are not exported.")
    return finite


def _with_rotations(quats: Tensor) -> Tensor:
    """Quaternions [N, 4], those of length 0 replaced by the identity."""
    return torch.where((quats != 0).any(-1, keepdim=True), quats, quats.new_tensor([1.0, 0.0, 0.0, 0.0]))


def _named(names: Sequence[str], values: Tensor) -> Columns:
    return {name: values[:, i].numpy() for i, name in enumerate(names)}


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_cloud(
    path: Path,
    unit: float | None = None,
    sh_degree: int = SH_DEGREE,
    num_lobes: int | None = None,
    least_scale: float = 0.0,
) -> GaussianCloud:
    """A cloud from a file of either format; harmonics and lobes that the file lacks get coefficients of 0.

    Args:
        path: a PLY file of `cloud_columns` or `splat_columns`, or a 3D Gaussian splatting file of another program.
        unit: scene scale (scene units); None: the one in the file, or else 1.
        sh_degree: highest degree of the cloud's harmonics.
        num_lobes: spherical Gaussians of each colour; None: as many as in the file.
        least_scale: scales of splats are raised to this minimum (scene units) and densities adjusted, so that the
            samples of a ray can't miss a flat splat.

    Raises:
        UserError: the file is missing, has neither format, lacks properties, or needs a higher `sh_degree` or more
            lobes than requested.
    """
    ply = read_ply(path)
    unit = unit or _header_unit(ply)
    refuse_packed(ply.columns, path)
    if is_splat(ply.columns):
        params = _from_splats(ply.columns, path, unit, sh_degree, num_lobes or 0, least_scale)
    elif "density" in ply.columns or "log_scale_0" in ply.columns:
        params = _from_raygauss(ply.columns, path, unit, sh_degree, num_lobes)
    elif "opacity" in ply.columns or "scale_0" in ply.columns:
        _require(completed(ply.columns, path), _SPLAT_NAMES, path)
        raise AssertionError("a splat has an opacity and scales")
    else:
        raise UserError(
            f"The PLY file {path} holds neither Gaussians ({', '.join(_RAYGAUSS_NAMES)}) nor splats "
            f"({', '.join(_SPLAT_NAMES)}); it has only {', '.join(ply.columns)}. Points without "
            'shapes can start a training: name the file in the data\'s transforms.json, "ply_file_path".'
        )
    cloud = GaussianCloud(
        StartPoints(torch.zeros(1, 3), None), unit, 1.0, sh_degree=sh_degree, num_lobes=params["sg_axes"].shape[1]
    )
    state = {f"params.{name}": value for name, value in params.items()}
    cloud.load_state_dict(state | {"_extra_state": cloud.get_extra_state()})
    return cloud


def header_values(comments: Sequence[str]) -> dict[str, float]:
    """The numbers in a file's comments of the form `name value`."""
    found = {}
    for comment in comments:
        name, _, value = comment.partition(" ")
        try:
            found[name] = float(value)
        except ValueError:  # prose
            continue
    return found


def _header_unit(ply: Ply) -> float:
    unit = header_values(ply.comments).get("scene_unit", 1.0)
    return unit if 0 < unit < math.inf else 1.0


def _from_raygauss(
    columns: Columns, path: Path, unit: float, sh_degree: int, num_lobes: int | None
) -> dict[str, Tensor]:
    _require(columns, _RAYGAUSS_NAMES, path)
    every = [name for name in columns if name in _RAYGAUSS_NAMES or name.startswith(("sh_", "sg_"))]
    columns = sound_rows(columns, every, _QUAT, path)
    harmonics = _count(columns, "sh_{}_r")
    stored_lobes = _count(columns, "sg_{}_raw_sharpness")
    lobes = stored_lobes if num_lobes is None else num_lobes
    if harmonics > (sh_degree + 1) ** 2 or stored_lobes > lobes:
        raise UserError(
            f"The PLY file {path} has harmonics of degree {math.isqrt(harmonics - 1)} and {stored_lobes} lobes, more "
            f"than --pipeline.model.sh-degree {sh_degree} and --pipeline.model.num-lobes {lobes} have room for."
        )
    if math.isqrt(harmonics) ** 2 != harmonics:
        raise UserError(f"The PLY file {path} has {harmonics} harmonics; it must be 1, 4 or 9.")
    names = [name for i in range(harmonics) for name in (f"sh_{i}_{c}" for c in _CHANNELS)]
    sh = _stacked(columns, names, path).view(-1, harmonics, 3)
    means = _stacked(columns, _AXES, path)
    params = _blank(len(means), sh_degree, lobes)
    for j in range(stored_lobes):
        amplitudes = [f"sg_{j}_amplitude_{c}" for c in _CHANNELS]
        params["sg_amplitudes"][:, j] = _stacked(columns, amplitudes, path)
        params["sg_sharpness"][:, j] = _stacked(columns, [f"sg_{j}_raw_sharpness"], path)[:, 0]
        params["sg_axes"][:, j] = _stacked(columns, [f"sg_{j}_axis_{a}" for a in _AXES], path)
    params["sh_rest"][:, : harmonics - 1] = sh[:, 1:]
    densities = torch.from_numpy(columns["density"].astype(np.float64)) * unit
    return params | {
        "means": means,
        "scales": _stacked(columns, _LOG_SCALES, path),
        "quats": _stacked(columns, _QUAT, path),
        "densities": densities.float(),
        "sh_base": sh[:, 0].contiguous(),
    }


def _from_splats(
    columns: Columns, path: Path, unit: float, sh_degree: int, num_lobes: int, least_scale: float
) -> dict[str, Tensor]:
    columns = completed(columns, path)
    _require(columns, _SPLAT_NAMES, path)
    count = count_of_rest(columns, path)
    columns = sound_rows(columns, [*_SPLAT_NAMES, *(f"f_rest_{i}" for i in range(count))], ROTATION, path)
    means = _stacked(columns, _AXES, path)
    params = _blank(len(means), sh_degree, num_lobes)
    if count > 0:
        rest = _stacked(columns, [f"f_rest_{i}" for i in range(count)], path).view(-1, 3, count // 3).transpose(1, 2)
        bands = min(count // 3, params["sh_rest"].shape[1])
        tell_what_is_cut(rest, bands, sh_degree, path)
        params["sh_rest"][:, :bands] = rest[:, :bands]
    log_scales = _stacked(columns, SCALES, path).double()
    depths = softplus(_stacked(columns, ["opacity"], path)[:, 0].double())
    depths, log_scales = with_filter(depths, log_scales, columns, path)
    if least_scale > 0:
        log_scales = log_scales.clamp_min(math.log(least_scale))
    return params | {
        "means": means,
        "scales": log_scales.float(),
        "quats": _stacked(columns, ROTATION, path),
        "densities": (densities_of_depths(depths, log_scales) * unit).float(),
        "sh_base": _stacked(columns, BASE, path),
    }


def _blank(n: int, sh_degree: int, num_lobes: int) -> dict[str, Tensor]:
    """View-independent colour coefficients. Axes are random: a lobe with an axis of 0 could not learn one."""
    return {
        "sh_rest": torch.zeros(n, (sh_degree + 1) ** 2 - 1, 3),
        "sg_amplitudes": torch.zeros(n, num_lobes, 3),
        "sg_sharpness": torch.zeros(n, num_lobes),
        "sg_axes": torch.randn(n, num_lobes, 3),
    }


def _count(columns: Mapping[str, NDArray[np.generic]], pattern: str) -> int:
    """How many names of a numbered pattern exist, counted from 0 up to the first gap."""
    count = 0
    while pattern.format(count) in columns:
        count += 1
    return count


def _require(columns: Columns, names: Sequence[str], path: Path) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(f"The PLY file {path} lacks the vertex properties {', '.join(missing)}.")


def _stacked(columns: Columns, names: Sequence[str], path: Path) -> Tensor:
    _require(columns, names, path)
    return torch.from_numpy(np.stack([columns[name].astype(np.float32) for name in names], -1))
