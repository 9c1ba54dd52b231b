"""The mean difference of two images, and 1 - SSIM mixed into it, on a GPU: two Triton kernels, one for the gradient.

Notation as in `ssim.api`. A row of an image is 3 W consecutive floats: the next pixel is 3 floats away. A program takes
a block of windows, or of pixels in the gradient, and sums over the 11 x 11 weights directly: neighbours find the same
pixels in the first-level cache.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ns_support.kernels import triton_types as ty

_ROWS, _BLOCK = 4, 128
_TOTALS = 1024
"""Programs' sums that are added at once."""
_CHANNELS = 3
_SLOPES = 3  # derivatives of SSIM by m, X and Z


@triton.jit(do_not_specialize=["stride", "rows", "valid"])
def similarity_kernel(
    image: ty.Pointer,
    truth: ty.Pointer,
    weights: ty.Pointer,
    slopes: ty.Pointer,
    totals: ty.Pointer,
    stride: ty.Scalar,
    rows: ty.Scalar,
    valid: ty.Scalar,
    TAPS: tl.constexpr,
    DIFFERENTIATE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """SSIM of a block of windows: its sum and, if asked for, its derivatives [3, rows, valid] by m, X and Z.

    A program sees the block of pixels where these windows begin, and some that begin none. Totals [2, programs] become
    the sums of SSIM and of absolute differences.
    """
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    at = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None]
    inside = (row < rows) & (at < valid)
    m = tl.zeros([ROWS, BLOCK], tl.float32)
    n = tl.zeros([ROWS, BLOCK], tl.float32)
    xx = tl.zeros([ROWS, BLOCK], tl.float32)
    yy = tl.zeros([ROWS, BLOCK], tl.float32)
    xy = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in range(TAPS):
        down = tl.load(weights + i)
        for k in range(TAPS):
            w = down * tl.load(weights + k)
            place = (row + i) * stride + at + 3 * k
            a = tl.load(image + place, mask=inside, other=0.0)
            b = tl.load(truth + place, mask=inside, other=0.0)
            m += w * a
            n += w * b
            xx += w * a * a
            yy += w * b * b
            xy += w * a * b
    light = 2.0 * m * n + 0.0001
    light_norm = 1.0 / (m * m + n * n + 0.0001)
    shape = 2.0 * (xy - m * n) + 0.0009
    shape_norm = 1.0 / (xx - m * m + yy - n * n + 0.0009)
    luminance = light * light_norm
    structure = shape * shape_norm
    similarity = luminance * structure
    program = totals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(program, tl.sum(tl.sum(tl.where(inside, similarity, 0.0), 1), 0))
    pixel = (row < rows + TAPS - 1) & (at < stride)
    place = row * stride + at
    a = tl.load(image + place, mask=pixel, other=0.0)
    b = tl.load(truth + place, mask=pixel, other=0.0)
    tl.store(program + tl.num_programs(0) * tl.num_programs(1), tl.sum(tl.sum(tl.abs(a - b), 1), 0))
    if DIFFERENTIATE:
        by_m = structure * light_norm * (n - luminance * m) - luminance * shape_norm * (n - structure * m)
        place = row * valid + at
        plane = rows.to(tl.int64) * valid
        tl.store(slopes + place, 2.0 * by_m, mask=inside)
        tl.store(slopes + plane + place, -(similarity * shape_norm), mask=inside)
        tl.store(slopes + 2 * plane + place, 2.0 * luminance * shape_norm, mask=inside)


@triton.jit(do_not_specialize=["programs"])
def mixture_kernel(
    totals: ty.Pointer,
    value: ty.Pointer,
    programs: ty.Scalar,
    scale: ty.Scalar,
    similarity_scale: ty.Scalar,
    share: ty.Scalar,
    BLOCK: tl.constexpr,
) -> None:
    """One program: `share` + `scale` times the sum of differences + `similarity_scale` times that of SSIM."""
    difference = tl.zeros([BLOCK], tl.float32)
    similarity = tl.zeros([BLOCK], tl.float32)
    first = programs * 0
    while first < programs:
        i = first + tl.arange(0, BLOCK)
        similarity += tl.load(totals + i, mask=i < programs, other=0.0)
        difference += tl.load(totals + programs + i, mask=i < programs, other=0.0)
        first += BLOCK
    tl.store(value, share + scale * tl.sum(difference, 0) + similarity_scale * tl.sum(similarity, 0))


@triton.jit(do_not_specialize=["stride", "rows", "valid"])
def similarity_gradient_kernel(
    image: ty.Pointer,
    truth: ty.Pointer,
    weights: ty.Pointer,
    slopes: ty.Pointer,
    factor: ty.Pointer,
    gradient: ty.Pointer,
    stride: ty.Scalar,
    rows: ty.Scalar,
    valid: ty.Scalar,
    scale: ty.Scalar,
    similarity_scale: ty.Scalar,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """`factor` times the gradient [H, stride] of what `mixture_kernel` computes, for a block: the transposed blur."""
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    at = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None]
    by_m = tl.zeros([ROWS, BLOCK], tl.float32)
    by_xx = tl.zeros([ROWS, BLOCK], tl.float32)
    by_xy = tl.zeros([ROWS, BLOCK], tl.float32)
    plane = rows.to(tl.int64) * valid
    for i in range(TAPS):
        above = row - i
        down = tl.load(weights + i)
        for k in range(TAPS):
            w = down * tl.load(weights + k)
            left = at - 3 * k
            seen = (above >= 0) & (above < rows) & (left >= 0) & (left < valid)
            place = above.to(tl.int64) * valid + left
            by_m += w * tl.load(slopes + place, mask=seen, other=0.0)
            by_xx += w * tl.load(slopes + plane + place, mask=seen, other=0.0)
            by_xy += w * tl.load(slopes + 2 * plane + place, mask=seen, other=0.0)
    inside = (row < rows + TAPS - 1) & (at < stride)
    place = row.to(tl.int64) * stride + at
    x = tl.load(image + place, mask=inside, other=0.0)
    y = tl.load(truth + place, mask=inside, other=0.0)
    sign = tl.where(x > y, 1.0, tl.where(x < y, -1.0, 0.0))
    by_x = scale * sign + similarity_scale * (by_m + 2.0 * x * by_xx + y * by_xy)
    tl.store(gradient + place, tl.load(factor) * by_x, mask=inside)


@lru_cache(maxsize=4)
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(weights, device=device)


class Mixture(torch.autograd.Function):
    """(1 - w) mean |x - y| + w (1 - mean SSIM) of [H, W, 3] float32 images on a GPU, differentiable in the first.

    Arguments are the image, the ground truth (which gets no gradient), w, and the window's weights along one axis, no
    more of them than H and W.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, ground_truth: Tensor, share: float, weights: tuple[float, ...]) -> Tensor:
        """A scalar."""
        x, y = image.contiguous(), ground_truth.contiguous()
        height, width = x.shape[:2]
        taps = _on_device(weights, x.device)
        stride = _CHANNELS * width
        rows, valid = height - len(taps) + 1, _CHANNELS * (width - len(taps) + 1)
        ctx.sizes = stride, rows, valid
        ctx.scales = (1 - share) / (height * stride), -share / (rows * valid)
        differentiate = ctx.needs_input_grad[0]
        slopes = x.new_empty(_SLOPES * rows * valid if differentiate else 0)
        grid = triton.cdiv(stride, _BLOCK), triton.cdiv(height, _ROWS)
        totals, value = x.new_empty(2, *grid), x.new_empty(())
        options = {"TAPS": len(taps), "ROWS": _ROWS, "BLOCK": _BLOCK, "num_warps": 4}
        similarity_kernel[grid](x, y, taps, slopes, totals, *ctx.sizes, DIFFERENTIATE=differentiate, **options)
        mixture_kernel[(1,)](totals, value, grid[0] * grid[1], *ctx.scales, share, BLOCK=_TOTALS, num_warps=4)
        if differentiate:
            ctx.save_for_backward(x, y, taps, slopes)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the image."""
        x, y, taps, slopes = ctx.saved_tensors
        gradient = torch.empty_like(x)
        grid = triton.cdiv(ctx.sizes[0], _BLOCK), triton.cdiv(len(x), _ROWS)
        options = {"TAPS": len(taps), "ROWS": _ROWS, "BLOCK": _BLOCK, "num_warps": 4}
        similarity_gradient_kernel[grid](x, y, taps, slopes, grad, gradient, *ctx.sizes, *ctx.scales, **options)
        return gradient, None, None, None
