"""`cast`: checks what it is given and hands it to a back end.

outputs = cast(gaussians, colors, Rays(origins, directions, nears, fars, image_width=width), settings)
image = outputs.rgb + outputs.transmittance[:, None] * background
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
    Rays,
    WhitenedGaussians,
    far_ends,
    sample_counts,
    whitening_matrices,
)

Backend: TypeAlias = Literal["auto", "cpu", "gpu", "reference"]


def cast(
    gaussians: Gaussians, colors: Tensor, rays: Rays, settings: CastSettings, *, backend: Backend = "auto"
) -> RayOutputs:
    """Cast R rays at N Gaussians and composite what they meet, front to back.

    Args:
        gaussians: the N Gaussians; those whose density does not exceed the threshold are culled, and so are those with
            a parameter or a colour that is not finite, or a scale of 0: they get a gradient of 0.
        colors: [N, 3] one colour per Gaussian, as seen from these rays; any range.
        rays: the R rays.
        settings: step, thresholds and slab size.
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

    Example:
        >>> import torch
        >>> from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast
        >>> zero, one = torch.zeros(1, 3), torch.ones(1, 3)
        >>> ball = Gaussians(means=zero, scales=one, quats=torch.tensor([[1.0, 0, 0, 0]]), densities=torch.ones(1))
        >>> near, far = torch.zeros(1), torch.full((1,), 99.0)
        >>> ray = Rays(torch.tensor([[0.0, 0, -9]]), torch.tensor([[0.0, 0, 1]]), near, far)
        >>> out = cast(ball, one, ray, CastSettings(step=0.01, density_threshold=1e-4))
        >>> out.transmittance  # exp(-sqrt(2 pi))
        tensor([0.0815])
    """
    _check_inputs(gaussians, colors, rays)
    _check_settings(settings)
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if backend == "gpu" or (backend == "auto" and gaussians.means.is_cuda):
        return _cast_on_gpu(gaussians, colors, rays, settings)
    _check_directions(rays.directions)
    gaussians, colors = _finite_ones(gaussians, colors)
    rays, ends = _with_ends(rays, settings)
    if backend == "reference":
        from raygauss_ns.casting.reference import cast_reference

        whitenings = whitening_matrices(gaussians.scales, gaussians.quats)
        field = WhitenedGaussians(gaussians.means, whitenings, gaussians.densities, colors)
        return cast_reference(field, rays, ends, settings)
    # Numba takes a second to import: only who casts with it pays.
    from raygauss_ns.casting.cpu.autograd import CpuCast, ray_arrays

    out = CpuCast.apply(*gaussians, colors, ray_arrays(rays, ends), settings)
    return RayOutputs(out[:, :3], out[:, 3], out[:, 4])


def _cast_on_gpu(gaussians: Gaussians, colors: Tensor, rays: Rays, settings: CastSettings) -> RayOutputs:
    """The GPU path. Never synchronises with the device."""
    _require_gpu(*gaussians, colors, *rays[:4])
    from raygauss_ns.casting.gpu.autograd import GpuCast

    return RayOutputs(*GpuCast.apply(*gaussians, colors, rays, settings))


def _with_ends(rays: Rays, settings: CastSettings) -> tuple[Rays, Tensor]:
    """The rays as they begin, and how many samples each has or, if the step grows, where it ends."""
    if not settings.grows:
        return rays, sample_counts(rays.nears, rays.fars, settings)
    nears, ends = far_ends(rays.nears, rays.fars, settings)
    return rays._replace(nears=nears), ends


def _require_gpu(*tensors: Tensor) -> None:
    kernels = triton_module("raygauss_ns.casting.gpu.kernels", 'backend "gpu"', ', or cast with backend="cpu"')
    device = tensors[0].device
    for tensor in tensors:
        if tensor.device != device:
            raise ValueError(f'backend "gpu" needs all tensors on one device, got {device} and {tensor.device}')
    if not runs_on(kernels.forward_kernel, device):
        raise ValueError(
            f'backend "gpu" needs tensors on a GPU, got {device}: move them with .cuda(), or use backend="auto"'
        )


def _finite_rows(gaussians: Gaussians, colors: Tensor) -> Tensor:
    """[N] bool, which Gaussians have finite parameters, a finite colour and no scale of 0."""
    values = (*gaussians[:3], gaussians.scales.reciprocal(), gaussians.densities[:, None], colors)
    return torch.stack([value.detach().isfinite().all(-1) for value in values]).all(0)


def _check_inputs(gaussians: Gaussians, colors: Tensor, rays: Rays) -> None:
    n, r = len(gaussians.means), len(rays.origins)
    expected = {
        "means": (gaussians.means, (n, 3), "N"),
        "scales": (gaussians.scales, (n, 3), "N"),
        "quats": (gaussians.quats, (n, 4), "N"),
        "densities": (gaussians.densities, (n,), "N"),
        "colors": (colors, (n, 3), "N"),
        "origins": (rays.origins, (r, 3), "R"),
        "directions": (rays.directions, (r, 3), "R"),
        "nears": (rays.nears, (r,), "R"),
        "fars": (rays.fars, (r,), "R"),
    }
    for name, (tensor, shape, letter) in expected.items():
        if tuple(tensor.shape) != shape:
            wanted = f"[{', '.join([letter, *map(str, shape[1:])])}] with {letter}={shape[0]}"
            raise ValueError(f"{name} must be {wanted}, got {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    width = rays.image_width
    if width < 0 or (width > 0 and r % width):
        raise ValueError(f"image_width must divide the number of rays, got image_width={width} with R={r}")


def _check_directions(directions: Tensor) -> None:
    lengths = torch.linalg.vector_norm(directions.detach(), dim=-1)
    if len(directions) > 0 and not bool(torch.all((lengths - 1).abs() < 1e-3)):
        worst = float(lengths[(lengths - 1).abs().argmax()])
        raise ValueError(f"directions must be of unit length, got one of length {worst:.4g}: normalise them")


def _finite_ones(gaussians: Gaussians, colors: Tensor) -> tuple[Gaussians, Tensor]:
    """Leave out what is not finite here, where the gradient is 0 for it; further down 0 times infinity makes NaN."""
    finite = _finite_rows(gaussians, colors)
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
