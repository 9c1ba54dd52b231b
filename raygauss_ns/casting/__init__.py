"""Volumetric ray casting of Gaussians: `cast` is the one public function, differentiable in Gaussians and colours.

    outputs = cast(gaussians, colors, origins, directions, nears, fars, settings, image_width=width)
    image = outputs.rgb + outputs.transmittance[:, None] * background

Needs torch, numpy and numba only.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from raygauss_ns.casting.types import CastSettings, Gaussians, RayOutputs, sample_counts, whitening_matrices

__all__ = ["Backend", "CastSettings", "Gaussians", "RayOutputs", "cast", "whitening_matrices"]

Backend: TypeAlias = Literal["auto", "cpu", "reference"]


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
        backend: "cpu" (Numba; computes in float32, on the host), "reference" (dense PyTorch at the inputs' precision,
            on their device, for small sets) or "auto", which is "cpu".

    Returns:
        Colour, transmittance and depth, differentiable in the Gaussians and the colours, not in the rays.

    Raises:
        ValueError: an input's shape, length or a setting makes no sense; the message names it.
    """
    _check_inputs(gaussians, colors, origins, directions, nears, fars, image_width)
    _check_settings(settings)
    if backend not in ("auto", "cpu", "reference"):
        raise ValueError(f'backend must be "auto", "cpu" or "reference", got {backend!r}')
    gaussians, colors = _finite_ones(gaussians, colors)
    whitenings = whitening_matrices(gaussians.scales, gaussians.quats)
    counts = sample_counts(nears, fars, settings)
    if backend == "reference":
        from raygauss_ns.casting.reference import cast_reference

        return cast_reference(
            gaussians.means, whitenings, gaussians.densities, colors, origins, directions, nears, counts, settings
        )
    # Numba takes a second to import: only who casts with it pays.
    from raygauss_ns.casting.autograd import CpuCast, rays_from_tensors

    rays = rays_from_tensors(origins, directions, nears, counts, image_width)
    out = CpuCast.apply(gaussians.means, whitenings, gaussians.densities, colors, rays, settings)
    return RayOutputs(out[:, :3], out[:, 3], out[:, 4])


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
    lengths = torch.linalg.vector_norm(directions.detach(), dim=-1)
    if r > 0 and not bool(torch.all((lengths - 1).abs() < 1e-3)):
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
