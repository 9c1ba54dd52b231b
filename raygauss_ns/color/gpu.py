"""Colours on a GPU: `colors_reference` and its gradients as one Triton kernel each, a Gaussian in each lane.

The formulas are those of `color.cpu`. As operations of PyTorch, colours took 125 launches in a training step.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ns_support.kernels import triton_types as ty
from ns_support.kernels.harmonics import Y0, Y1, Y2

_BLOCK, _WARPS = 128, 4
_Y0, _Y1 = tl.constexpr(Y0), tl.constexpr(Y1)
_A, _B, _C = (tl.constexpr(value) for value in Y2)
_TINY = tl.constexpr(1e-12)


@triton.jit
def _load(at: ty.Pointer, valid: ty.Lanes) -> ty.Vector:
    """Three consecutive floats per lane."""
    return (
        tl.load(at, mask=valid, other=0.0),
        tl.load(at + 1, mask=valid, other=0.0),
        tl.load(at + 2, mask=valid, other=0.0),
    )


@triton.jit
def _store(at: ty.Pointer, value: ty.Vector, valid: ty.Lanes) -> None:
    tl.store(at, value[0], mask=valid)
    tl.store(at + 1, value[1], mask=valid)
    tl.store(at + 2, value[2], mask=valid)


@triton.jit
def _direction(mean: ty.Vector, center: ty.Pointer, stride: ty.Scalar) -> tuple[ty.Vector, ty.Lanes]:
    """The direction from a point to each Gaussian, and the distance."""
    x, y, z = mean[0] - tl.load(center), mean[1] - tl.load(center + stride), mean[2] - tl.load(center + 2 * stride)
    length = tl.sqrt(x * x + y * y + z * z)
    scale = 1.0 / tl.maximum(length, _TINY)
    return (x * scale, y * scale, z * scale), length


@triton.jit
def _harmonic(d: ty.Vector, BAND: tl.constexpr) -> ty.Lanes:
    """A real spherical harmonic of degree 1 (bands 0 to 2) or 2."""
    x, y, z = d
    if BAND == 0:
        value = y * -_Y1
    elif BAND == 1:
        value = z * _Y1
    elif BAND == 2:
        value = x * -_Y1
    elif BAND == 3:
        value = x * y * _A
    elif BAND == 4:
        value = y * z * -_A
    elif BAND == 5:
        value = (2.0 * z * z - x * x - y * y) * _B
    elif BAND == 6:
        value = x * z * -_A
    else:
        value = (x * x - y * y) * _C
    return value


@triton.jit
def _slope(d: ty.Vector, BAND: tl.constexpr) -> ty.Vector:
    """The gradient of a harmonic by the direction."""
    x, y, z = d
    zero = x * 0.0
    if BAND == 0:
        value = (zero, zero - _Y1, zero)
    elif BAND == 1:
        value = (zero, zero, zero + _Y1)
    elif BAND == 2:
        value = (zero - _Y1, zero, zero)
    elif BAND == 3:
        value = (y * _A, x * _A, zero)
    elif BAND == 4:
        value = (zero, z * -_A, y * -_A)
    elif BAND == 5:
        value = (x * (-2.0 * _B), y * (-2.0 * _B), z * (4.0 * _B))
    elif BAND == 6:
        value = (z * -_A, zero, x * -_A)
    else:
        value = (x * (2.0 * _C), y * (-2.0 * _C), zero)
    return value


@triton.jit
def _lobe(raw: ty.Lanes, axis: ty.Vector, d: ty.Vector) -> tuple[ty.Lanes, ty.Lanes, ty.Vector, ty.Lanes, ty.Lanes]:
    """Of a spherical Gaussian: its value, lambda, unit axis n, 1 / |v| and u = d . n."""
    scale = 1.0 / tl.maximum(tl.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2]), _TINY)
    n = (axis[0] * scale, axis[1] * scale, axis[2] * scale)
    u = n[0] * d[0] + n[1] * d[1] + n[2] * d[2]
    sharp = tl.maximum(raw, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(raw)))  # softplus
    return tl.exp(sharp * (u - 1.0)), sharp, n, scale, u


@triton.jit(do_not_specialize=["number", "rest_stride", "center_stride"])
def color_kernel(
    means: ty.Pointer,
    base: ty.Pointer,
    rest: ty.Pointer,
    amplitudes: ty.Pointer,
    sharpness: ty.Pointer,
    axes: ty.Pointer,
    center: ty.Pointer,
    colors: ty.Pointer,
    number: ty.Scalar,
    rest_stride: ty.Scalar,
    center_stride: ty.Scalar,
    BANDS: tl.constexpr,
    LOBES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Colours [N, 3] of a block of Gaussians as seen from a point; `rest_stride` floats lie between rows of `rest`."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = i < number
    d, _ = _direction(_load(means + 3 * i, valid), center, center_stride)
    k = _load(base + 3 * i, valid)
    r, g, b = k[0] * _Y0 + 0.5, k[1] * _Y0 + 0.5, k[2] * _Y0 + 0.5
    for band in tl.static_range(BANDS):
        value, k = _harmonic(d, band), _load(rest + i * rest_stride + 3 * band, valid)
        r, g, b = r + value * k[0], g + value * k[1], b + value * k[2]
    for j in tl.static_range(LOBES):
        at = i * LOBES + j
        value, _, _, _, _ = _lobe(tl.load(sharpness + at, mask=valid, other=0.0), _load(axes + 3 * at, valid), d)
        k = _load(amplitudes + 3 * at, valid)
        r, g, b = r + value * k[0], g + value * k[1], b + value * k[2]
    _store(colors + 3 * i, (r, g, b), valid)


@triton.jit(do_not_specialize=["number", "rest_stride", "center_stride"])
def color_gradient_kernel(
    means: ty.Pointer,
    rest: ty.Pointer,
    amplitudes: ty.Pointer,
    sharpness: ty.Pointer,
    axes: ty.Pointer,
    center: ty.Pointer,
    gradient: ty.Pointer,
    of_means: ty.Pointer,
    of_base: ty.Pointer,
    of_rest: ty.Pointer,
    of_amplitudes: ty.Pointer,
    of_sharpness: ty.Pointer,
    of_axes: ty.Pointer,
    number: ty.Scalar,
    rest_stride: ty.Scalar,
    center_stride: ty.Scalar,
    BANDS: tl.constexpr,
    LOBES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Gradients of the means and the basis of a block of Gaussians, from those of their colours [N, 3]."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = i < number
    d, length = _direction(_load(means + 3 * i, valid), center, center_stride)
    r, g, b = _load(gradient + 3 * i, valid)
    _store(of_base + 3 * i, (r * _Y0, g * _Y0, b * _Y0), valid)
    dx, dy, dz = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for band in tl.static_range(BANDS):
        value, slope, k = _harmonic(d, band), _slope(d, band), _load(rest + i * rest_stride + 3 * band, valid)
        product = r * k[0] + g * k[1] + b * k[2]
        dx, dy, dz = dx + product * slope[0], dy + product * slope[1], dz + product * slope[2]
        _store(of_rest + (i * BANDS + band) * 3, (r * value, g * value, b * value), valid)
    for j in tl.static_range(LOBES):
        at = i * LOBES + j
        raw, k = tl.load(sharpness + at, mask=valid, other=0.0), _load(amplitudes + 3 * at, valid)
        value, sharp, n, scale, u = _lobe(raw, _load(axes + 3 * at, valid), d)
        h = (r * k[0] + g * k[1] + b * k[2]) * value
        du = h * sharp
        dx, dy, dz = dx + du * n[0], dy + du * n[1], dz + du * n[2]
        _store(of_amplitudes + 3 * at, (r * value, g * value, b * value), valid)
        tl.store(of_sharpness + at, h * (u - 1.0) / (1.0 + tl.exp(-raw)), mask=valid)
        du *= scale
        _store(of_axes + 3 * at, (du * (d[0] - u * n[0]), du * (d[1] - u * n[1]), du * (d[2] - u * n[2])), valid)
    along = d[0] * dx + d[1] * dy + d[2] * dz
    scale = tl.where(length > _TINY, 1.0 / length, 0.0)  # for a Gaussian at the camera's centre d is undefined
    _store(
        of_means + 3 * i, ((dx - d[0] * along) * scale, (dy - d[1] * along) * scale, (dz - d[2] * along) * scale), valid
    )


class GpuColors(torch.autograd.Function):
    """`view_colors` of float32 tensors on a GPU."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        sh_base: Tensor,
        sh_rest: Tensor,
        sg_amplitudes: Tensor,
        sg_sharpness: Tensor,
        sg_axes: Tensor,
        center: Tensor,
    ) -> Tensor:
        """Colours [N, 3]."""
        if sh_rest.stride()[1:] != (3, 1):  # rows may lie further apart: the lower degrees of a longer row
            sh_rest = sh_rest.contiguous()
        others = (tensor.contiguous() for tensor in (sg_amplitudes, sg_sharpness, sg_axes))
        inputs = (means.contiguous(), sh_base.contiguous(), sh_rest, *others, center)
        colors = torch.empty_like(inputs[0])
        if len(means) > 0:
            color_kernel[(triton.cdiv(len(means), _BLOCK),)](
                *inputs, colors, *_sizes(sh_rest, center), **_options(*inputs[2:4])
            )
        ctx.save_for_backward(inputs[0], *inputs[2:])
        return colors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the means and the basis."""
        means, rest, *lobes, center = ctx.saved_tensors
        shapes = (means.shape, means.shape, rest.shape, *(tensor.shape for tensor in lobes))
        gradients = [means.new_empty(shape) for shape in shapes]
        if len(means) > 0:
            color_gradient_kernel[(triton.cdiv(len(means), _BLOCK),)](
                *(means, rest, *lobes, center, gradient.contiguous(), *gradients),
                *_sizes(rest, center),
                **_options(rest, lobes[0]),
            )
        needed = [value if needs else None for value, needs in zip(gradients, ctx.needs_input_grad, strict=False)]
        return *needed, None


def _sizes(rest: Tensor, center: Tensor) -> tuple[int, int, int]:
    return len(rest), rest.stride(0), center.stride(0)


def _options(rest: Tensor, amplitudes: Tensor) -> dict[str, int]:
    return {"BANDS": rest.shape[1], "LOBES": amplitudes.shape[1], "BLOCK": _BLOCK, "num_warps": _WARPS}
