"""Volumetric ray casting of Gaussians: `cast` is the one public function, differentiable in Gaussians and colours.

    outputs = cast(gaussians, colors, origins, directions, nears, fars, settings, image_width=width)
    image = outputs.rgb + outputs.transmittance[:, None] * background

Needs torch, numpy and numba; Triton on a GPU.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ns_support.kernels.backend import runs_on, triton_module
from raygauss_ns.casting.types import (
    CastSettings,
    Gaussians,
    RayOutputs,
    far_ends,
    sample_counts,
    whitening_matrices,
)

__all__ = ["Backend", "CastSettings", "Gaussians", "RayOutputs", "cast", "whitening_matrices"]

Backend: TypeAlias = Literal["auto", "cpu", "gpu", "reference"]


def cast(
    gaussians: Gaussians,
    colors: Tensor,
    origins: Tensor,
    directions: Tensor,
    nears: Tensor,
    fars: Tensor,
    settings: CastSettings,
    *,
    image_width: int = 0,
    backend: Backend = "auto",
) -> RayOutputs:
    """Cast R rays at N Gaussians and composite what they meet, front to back.

    Args:
        gaussians: the N Gaussians; those whose density does not exceed the threshold count as absent, and so do those
            with a parameter or a colour that is not finite, or a scale of 0: they get a gradient of 0.
        colors: [N, 3] one colour per Gaussian, as seen from these rays; any range.
        origins: [R, 3].
        directions: [R, 3] of unit length.
        nears: [R] distance along the ray at which it begins (length); samples are counted from here.
        fars: [R] distance at which it ends; may be infinite. near >= far is an empty ray.
        settings: step, thresholds and slab size.
        image_width: pixels of a row when the rays are an image, row by row; rays that are neighbours in it are cast
            together, several times faster. 0 for rays of no order; the results are the same.
        backend: "cpu" (Numba; computes in float32, on the host), "gpu" (Triton; computes in float32, on the GPU that
            holds the tensors, without waiting for it), "reference" (dense PyTorch at the inputs' precision, on their
            device, for small sets) or "auto": "gpu" for tensors on a GPU, else "cpu".

    Returns:
        Colour, transmittance and depth, differentiable in the Gaussians and the colours, not in the rays.

    Raises:
        ValueError: an input's shape, length, device or a setting makes no sense; the message names it. On "gpu", where
            looking at a value would make the host wait, a direction that is not of unit length makes its ray NaN
            instead.
        ImportError: "gpu" without Triton; the message says what to install.
    """
    _check_inputs(gaussians, colors, origins, directions, nears, fars, image_width)
    _check_settings(settings)
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if backend == "gpu" or (backend == "auto" and gaussians.means.is_cuda):
        return _cast_on_gpu(gaussians, colors, origins, directions, nears, fars, settings, image_width)
    _check_directions(directions)
    gaussians, colors = _finite_ones(gaussians, colors)
    nears, ends = _ends(nears, fars, settings)
    if backend == "reference":
        from raygauss_ns.casting.reference import cast_reference

        whitenings = whitening_matrices(gaussians.scales, gaussians.quats)
        return cast_reference(
            gaussians.means, whitenings, gaussians.densities, colors, origins, directions, nears, ends, settings
        )
    # Numba takes a second to import: only who casts with it pays.
    from raygauss_ns.casting.cpu.autograd import CpuCast, rays_from_tensors

    rays = rays_from_tensors(origins, directions, nears, ends, image_width)
    out = CpuCast.apply(*gaussians, colors, rays, settings)
    return RayOutputs(out[:, :3], out[:, 3], out[:, 4])


def _cast_on_gpu(
    gaussians: Gaussians,
    colors: Tensor,
    origins: Tensor,
    directions: Tensor,
    nears: Tensor,
    fars: Tensor,
    settings: CastSettings,
    image_width: int,
) -> RayOutputs:
    """Cast without a question to the device whose answer the host would wait for."""
    _require_triton(gaussians, colors, origins, directions, nears, fars)
    from raygauss_ns.casting.gpu.autograd import GpuCast

    gaussians, colors = _made_finite(gaussians, colors)
    whitenings = whitening_matrices(gaussians.scales, gaussians.quats)
    nears, ends = _ends(nears, fars, settings)
    unit = (torch.linalg.vector_norm(directions.detach(), dim=-1, keepdim=True) - 1).abs() < 1e-3
    out = GpuCast.apply(
        gaussians.means,
        whitenings,
        gaussians.densities,
        colors,
        origins,
        directions,
        nears,
        ends,
        image_width,
        settings,
    )
    out = torch.where(unit, out, torch.nan)
    return RayOutputs(out[:, :3], out[:, 3], out[:, 4])


def _ends(nears: Tensor, fars: Tensor, settings: CastSettings) -> tuple[Tensor, Tensor]:
    """Where rays begin, and how many samples they have or, if the step grows, where they end."""
    return far_ends(nears, fars) if settings.grows else (nears, sample_counts(nears, fars, settings))


def _require_triton(gaussians: Gaussians, *others: Tensor) -> None:
    kernels = triton_module("raygauss_ns.casting.gpu.kernels", 'backend "gpu"', ', or cast with backend="cpu"')
    device = gaussians.means.device
    for tensor in (*gaussians, *others):
        if tensor.device != device:
            raise ValueError(f'backend "gpu" needs all tensors on one device, got {device} and {tensor.device}')
    if not runs_on(kernels.forward_kernel, device):
        raise ValueError(
            f'backend "gpu" needs tensors on a GPU, got {device}: move them with .cuda(), or use backend="auto"'
        )


def _made_finite(gaussians: Gaussians, colors: Tensor) -> tuple[Gaussians, Tensor]:
    """As `_finite_ones`, but what is not finite stays, with a density of 0: sizes do not depend on values."""
    values = (*gaussians[:3], gaussians.scales.reciprocal(), gaussians.densities[:, None], colors)
    finite = torch.stack([value.detach().isfinite().all(-1) for value in values]).all(0)
    means, scales, quats, densities = gaussians
    return Gaussians(
        torch.where(finite[:, None], means, 0.0),
        torch.where(finite[:, None], scales, 1.0),
        torch.where(finite[:, None], quats, 1.0),
        torch.where(finite, densities, 0.0),
    ), torch.where(finite[:, None], colors, 0.0)


def _check_inputs(
    gaussians: Gaussians,
    colors: Tensor,
    origins: Tensor,
    directions: Tensor,
    nears: Tensor,
    fars: Tensor,
    image_width: int,
) -> None:
    n, r = len(gaussians.means), len(origins)
    expected = {
        "means": (gaussians.means, (n, 3), "N"),
        "scales": (gaussians.scales, (n, 3), "N"),
        "quats": (gaussians.quats, (n, 4), "N"),
        "densities": (gaussians.densities, (n,), "N"),
        "colors": (colors, (n, 3), "N"),
        "origins": (origins, (r, 3), "R"),
        "directions": (directions, (r, 3), "R"),
        "nears": (nears, (r,), "R"),
        "fars": (fars, (r,), "R"),
    }
    for name, (tensor, shape, letter) in expected.items():
        if tuple(tensor.shape) != shape:
            wanted = f"[{', '.join([letter, *map(str, shape[1:])])}] with {letter}={shape[0]}"
            raise ValueError(f"{name} must be {wanted}, got {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    if image_width < 0 or (image_width > 0 and r % image_width):
        raise ValueError(f"image_width must divide the number of rays, got image_width={image_width} with R={r}")


def _check_directions(directions: Tensor) -> None:
    lengths = torch.linalg.vector_norm(directions.detach(), dim=-1)
    if len(directions) > 0 and not bool(torch.all((lengths - 1).abs() < 1e-3)):
        worst = float(lengths[(lengths - 1).abs().argmax()])
        raise ValueError(f"directions must be of unit length, got one of length {worst:.4g}: normalise them")


def _finite_ones(gaussians: Gaussians, colors: Tensor) -> tuple[Gaussians, Tensor]:
    """Leave out what is not finite here, where the gradient is 0 for it; further down 0 times infinity makes NaN."""
    values = (*gaussians[:3], gaussians.scales.reciprocal(), gaussians.densities[:, None], colors)
    finite = torch.stack([value.detach().isfinite().all(-1) for value in values]).all(0)
    if bool(finite.all()):
        return gaussians, colors
    return Gaussians(*(parameter[finite] for parameter in gaussians)), colors[finite]


def _check_settings(settings: CastSettings) -> None:
    if not settings.step > 0:
        raise ValueError(f"step (dt) must be positive, got {settings.step}")
    if not settings.density_threshold > 0:
        raise ValueError(f"density_threshold (eps) must be positive, got {settings.density_threshold}")
    if not 0 <= settings.sample_offset < 1:
        raise ValueError(f"sample_offset must be in [0, 1), got {settings.sample_offset}")
    if not 0 <= settings.transmittance_threshold < 1:
        raise ValueError(f"transmittance_threshold must be in [0, 1), got {settings.transmittance_threshold}")
    if settings.samples_per_slab < 1:
        raise ValueError(f"samples_per_slab (K) must be at least 1, got {settings.samples_per_slab}")
    if not 0 <= settings.step_growth < math.inf:
        raise ValueError(f"step_growth (g) must be finite and at least 0, got {settings.step_growth}")
    if not 0 <= settings.transmittance_exponent <= 1:
        raise ValueError(f"transmittance_exponent (gamma) must be in [0, 1], got {settings.transmittance_exponent}")
    if settings.max_step != 0 and not settings.max_step >= settings.step:
        raise ValueError(
            f"max_step (dt_max) must be 0 (no bound) or at least step = {settings.step}, got {settings.max_step}"
        )
