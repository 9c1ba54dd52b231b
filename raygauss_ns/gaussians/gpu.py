"""Small kernels of a training step on a GPU: the isotropy loss, what density control observes, images over backgrounds.

Each is tested against the operations of PyTorch that a CPU uses: `losses.isotropy_loss`, `DensityControl.observe` and
`renderer.over`.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ns_support.kernels import triton_types as ty
from raygauss_ns.gaussians.projection import View

_BLOCK, _WARPS = 256, 4
_LOG_SPHERE = tl.constexpr(math.log(2 / (math.pi * 3**0.5)))


@triton.jit
def _elongation(at: ty.Pointer, mask: ty.Lanes) -> tuple[ty.Lanes, ty.Vector]:
    """Of Gaussians log r, and s^2 of each axis over the sum of them."""
    a, b, c = (
        tl.load(at, mask=mask, other=0.0),
        tl.load(at + 1, mask=mask, other=0.0),
        tl.load(at + 2, mask=mask, other=0.0),
    )
    most = tl.maximum(a, tl.maximum(b, c))
    x, y, z = tl.exp(2.0 * (a - most)), tl.exp(2.0 * (b - most)), tl.exp(2.0 * (c - most))
    total = x + y + z
    # Relative to the longest: each difference is exact, where the sum of three logarithms is not.
    log_ratio = 1.5 * tl.log(total) - ((a - most) + (b - most) + (c - most)) + _LOG_SPHERE
    return log_ratio, (x / total, y / total, z / total)


@triton.jit(do_not_specialize=["number"])
def isotropy_kernel(
    log_scales: ty.Pointer, sums: ty.Pointer, number: ty.Scalar, scale: ty.Scalar, BLOCK: tl.constexpr
) -> None:
    """`scale` times the sum of max(r, 10) - 10 over a block of Gaussians."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    log_ratio, _ = _elongation(log_scales + 3 * i, i < number)
    excess = tl.maximum(tl.exp(tl.minimum(log_ratio, 60.0)) - 10.0, 0.0)
    tl.store(sums + tl.program_id(0), scale * tl.sum(tl.where(i < number, excess, 0.0), 0))


@triton.jit(do_not_specialize=["number"])
def isotropy_gradient_kernel(
    log_scales: ty.Pointer,
    factor: ty.Pointer,
    gradient: ty.Pointer,
    number: ty.Scalar,
    scale: ty.Scalar,
    BLOCK: tl.constexpr,
) -> None:
    """`factor` times the gradient [N, 3] of what `isotropy_kernel` sums up."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < number
    log_ratio, parts = _elongation(log_scales + 3 * i, mask)
    ratio = tl.exp(tl.minimum(log_ratio, 60.0))
    by_ratio = tl.where((ratio > 10.0) & (log_ratio < 60.0), ratio * scale * tl.load(factor), 0.0)
    for axis in tl.static_range(3):
        tl.store(gradient + 3 * i + axis, by_ratio * (3.0 * parts[axis] - 1.0), mask=mask)


class Isotropy(torch.autograd.Function):
    """`losses.isotropy_loss` of [N, 3] float32 logarithms on a GPU; arguments are they and the weight."""

    @staticmethod
    def forward(ctx: Any, log_scales: Tensor, weight: float) -> Tensor:
        """A scalar."""
        values, number = log_scales.contiguous(), len(log_scales)
        ctx.scale = weight / number
        ctx.save_for_backward(values)
        sums = values.new_empty(triton.cdiv(number, _BLOCK))
        isotropy_kernel[(len(sums),)](values, sums, number, ctx.scale, BLOCK=_BLOCK, num_warps=_WARPS)
        return sums.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of the logarithms."""
        (values,) = ctx.saved_tensors
        gradient, number = torch.empty_like(values), len(values)
        isotropy_gradient_kernel[(triton.cdiv(number, _BLOCK),)](
            values, grad, gradient, number, ctx.scale, BLOCK=_BLOCK, num_warps=_WARPS
        )
        return gradient, None


@triton.jit(do_not_specialize=["number", "top", "left", "rows", "columns", "width", "height"])
def observe_kernel(
    gradient: ty.Pointer,
    means: ty.Pointer,
    pose: ty.Pointer,
    found: ty.Pointer,
    number: ty.Scalar,
    scale: ty.Scalar,
    near: ty.Scalar,
    fx: ty.Scalar,
    fy: ty.Scalar,
    cx: ty.Scalar,
    cy: ty.Scalar,
    width: ty.Scalar,
    height: ty.Scalar,
    top: ty.Scalar,
    left: ty.Scalar,
    rows: ty.Scalar,
    columns: ty.Scalar,
    BY_DISTANCE: tl.constexpr,
    CROPPED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Found [2, N]: lengths of gradients [N, 3] times `scale`, and 1 where they are not 0.

    BY_DISTANCE: lengths grow with the distance over `near`. CROPPED: what the image of a pinhole shows, but the window
    does not, was not seen.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < number
    x = tl.load(gradient + 3 * i, mask=mask, other=0.0)
    y = tl.load(gradient + 3 * i + 1, mask=mask, other=0.0)
    z = tl.load(gradient + 3 * i + 2, mask=mask, other=0.0)
    length = tl.sqrt(x * x + y * y + z * z) * scale
    seen = length > 0.0
    if BY_DISTANCE or CROPPED:
        a = tl.load(means + 3 * i, mask=mask, other=0.0)
        b = tl.load(means + 3 * i + 1, mask=mask, other=0.0)
        c = tl.load(means + 3 * i + 2, mask=mask, other=0.0)
        right = tl.load(pose) * a + tl.load(pose + 1) * b + tl.load(pose + 2) * c + tl.load(pose + 3)
        up = tl.load(pose + 4) * a + tl.load(pose + 5) * b + tl.load(pose + 6) * c + tl.load(pose + 7)
        back = tl.load(pose + 8) * a + tl.load(pose + 9) * b + tl.load(pose + 10) * c + tl.load(pose + 11)
        if BY_DISTANCE:
            length *= tl.maximum(tl.sqrt(right * right + up * up + back * back) / near, 1.0)
        if CROPPED:
            column, row = cx - fx * (right / back), cy + fy * (up / back)
            shown = (back < 0.0) & (column >= 0.0) & (column < width) & (row >= 0.0) & (row < height)
            inside = (column >= left) & (column < left + columns) & (row >= top) & (row < top + rows)
            seen = seen & (inside | (shown == 0))
    tl.store(found + i, length, mask=mask)
    tl.store(found + number + i, tl.where(seen, 1.0, 0.0), mask=mask)


_NO_VIEW: tuple[Any, ...] = (1.0, 1.0, 0.0, 0.0, 1, 1, 0, 0, 1, 1)
"""Lens and window where there is none: the kernel does not read them."""


def observed(
    gradient: Tensor, scale: float, means: Tensor | None = None, view: View | None = None, near: float = 0.0
) -> Tensor:
    """What `DensityControl.observe` measures: [2, N] lengths of gradients, and which Gaussians were seen.

    Args:
        gradient: [N, 3] float32 on a GPU.
        scale: what lengths are multiplied by.
        means: [N, 3] float32, needed with a view.
        view: the crop that was rendered, of a pinhole; None: a whole image.
        near: the distance above which lengths grow (scene units); 0: they do not.
    """
    number = len(gradient)
    found = gradient.new_empty(2, number)
    if number == 0:
        return found
    camera, numbers = gradient, _NO_VIEW
    if view is not None:
        assert means is not None
        camera, lens = view.world_to_camera.to(gradient).contiguous(), view.lens
        numbers = (lens.fx, lens.fy, lens.cx, lens.cy, lens.width, lens.height, *view.window)
    cropped = view is not None and view.fraction < 1
    observe_kernel[(triton.cdiv(number, _BLOCK),)](
        gradient.contiguous(), gradient if means is None else means.contiguous(), camera, found, number, scale, near,
        *numbers, BY_DISTANCE=view is not None and near > 0, CROPPED=cropped, BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    return found


_STRIDES = ["number", "color_stride", "through_stride", "depth_stride", "row_stride", "column_stride"]


@triton.jit(do_not_specialize=_STRIDES)
def over_kernel(
    colors: ty.Pointer,
    through: ty.Pointer,
    depths: ty.Pointer,
    background: ty.Pointer,
    color_stride: ty.Scalar,
    through_stride: ty.Scalar,
    depth_stride: ty.Scalar,
    row_stride: ty.Scalar,
    column_stride: ty.Scalar,
    image: ty.Pointer,
    accumulation: ty.Pointer,
    mean_depths: ty.Pointer,
    number: ty.Scalar,
    BLOCK: tl.constexpr,
) -> None:
    """What a block of rays shows over a background, whose rows and columns are `row_stride` and so on apart."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < number
    t = tl.load(through + i * through_stride, mask=mask, other=0.0)
    for channel in tl.static_range(3):
        front = tl.load(colors + i * color_stride + channel, mask=mask, other=0.0)
        back = tl.load(background + i * row_stride + channel * column_stride, mask=mask, other=0.0)
        tl.store(image + 3 * i + channel, front + t * back, mask=mask)
    tl.store(accumulation + i, 1.0 - t, mask=mask)
    depth = tl.load(depths + i * depth_stride, mask=mask, other=0.0)
    tl.store(mean_depths + i, depth / tl.maximum(1.0 - t, 1e-6), mask=mask)


@triton.jit(do_not_specialize=_STRIDES)
def over_gradient_kernel(
    of_image: ty.Pointer,
    of_accumulation: ty.Pointer,
    of_mean_depths: ty.Pointer,
    accumulation: ty.Pointer,
    mean_depths: ty.Pointer,
    background: ty.Pointer,
    row_stride: ty.Scalar,
    column_stride: ty.Scalar,
    of_through: ty.Pointer,
    of_depths: ty.Pointer,
    number: ty.Scalar,
    ACCUMULATION: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Gradients of transmittances and depths of a block of rays; ACCUMULATION and DEPTH: those that there are."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < number
    total = tl.zeros([BLOCK], tl.float32)
    for channel in tl.static_range(3):
        back = tl.load(background + i * row_stride + channel * column_stride, mask=mask, other=0.0)
        total += tl.load(of_image + 3 * i + channel, mask=mask, other=0.0) * back
    if ACCUMULATION:
        total -= tl.load(of_accumulation + i, mask=mask, other=0.0)
    if DEPTH:
        seen = tl.load(accumulation + i, mask=mask, other=0.0)
        of_depth = tl.load(of_mean_depths + i, mask=mask, other=0.0) / tl.maximum(seen, 1e-6)
        total += tl.where(seen > 1e-6, of_depth * tl.load(mean_depths + i, mask=mask, other=0.0), 0.0)
        tl.store(of_depths + i, of_depth, mask=mask)
    tl.store(of_through + i, total, mask=mask)


class Over(torch.autograd.Function):
    """`renderer.over` of float32 tensors on a GPU; the background gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any, colors: Tensor, through: Tensor, depths: Tensor, background: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image [R, 3], accumulation [R] and mean depth [R]."""
        colors = colors if colors.stride(1) == 1 else colors.contiguous()
        ctx.set_materialize_grads(False)
        number = len(through)
        outputs = colors.new_empty(number, 3), colors.new_empty(number), colors.new_empty(number)
        if number > 0:
            strides = colors.stride(0), through.stride(0), depths.stride(0), *background.stride()
            over_kernel[(triton.cdiv(number, _BLOCK),)](
                *(colors, through, depths, background, *strides, *outputs, number), BLOCK=_BLOCK, num_warps=_WARPS
            )
        ctx.save_for_backward(*outputs[1:], background)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_image: Tensor | None, of_accumulation: Tensor | None, of_depth: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of colours, transmittances and depths."""
        accumulation, mean_depths, background = ctx.saved_tensors
        number = len(accumulation)
        given = [
            accumulation.new_zeros(number, 3) if of_image is None else of_image.contiguous(),
            accumulation if of_accumulation is None else of_accumulation.contiguous(),
            accumulation if of_depth is None else of_depth.contiguous(),
        ]
        of_through = torch.empty_like(accumulation)
        of_depths = None if of_depth is None else torch.empty_like(accumulation)
        if number > 0:
            over_gradient_kernel[(triton.cdiv(number, _BLOCK),)](
                *(*given, accumulation, mean_depths, background, *background.stride(), of_through),
                *(accumulation if of_depths is None else of_depths, number),
                ACCUMULATION=of_accumulation is not None,
                DEPTH=of_depth is not None,
                BLOCK=_BLOCK,
                num_warps=_WARPS,
            )
        return given[0], of_through, of_depths, None
