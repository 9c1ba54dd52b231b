"""Compositing on a GPU: Triton kernels, a program a ray, 32 samples of it at a time.

A ray's sums are its own, so that float32 is enough: the PyTorch version takes differences of a sum over all rays.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ns_support.kernels import triton_types as ty

_OPTIONS: dict[str, Any] = {"BLOCK": 32, "num_warps": 1}


@triton.jit
def opacity(x: ty.Lanes) -> ty.Lanes:
    """1 - exp(-x), exact for thin samples too."""
    thin = x * (1.0 - x * (0.5 - x * (0.16666667 - x * 0.041666668)))
    return tl.where(x < 0.02, thin, 1.0 - tl.exp(-x))


@triton.jit
def _thickness_before(thickness: ty.Pointer, i: ty.Lanes, first: ty.Scalar, last: ty.Scalar) -> ty.Lanes:
    """Sum over a block's samples before each; the block begins at `first`."""
    # Of the samples themselves, shifted by one: subtracting a sample from its own sum would leave rounding.
    shifted = tl.load(thickness + i - 1, mask=(i > first) & (i < last), other=0.0)
    return tl.cumsum(shifted, 0)


@triton.jit
def composite_kernel(
    thickness: ty.Pointer,
    colors: ty.Pointer,
    middles: ty.Pointer,
    offsets: ty.Pointer,
    weights: ty.Pointer,
    after: ty.Pointer,
    sums: ty.Pointer,
    BLOCK: tl.constexpr,
) -> None:
    """Weights, transmittance behind each sample, and sums [R, 5] of w c, w and w t, of one ray."""
    ray = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + ray)
    last = tl.load(offsets + ray + 1)
    carried = first.to(tl.float32) * 0.0
    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    distance = tl.zeros([BLOCK], tl.float32)
    while first < last:
        i = first + tl.arange(0, BLOCK)
        mine = i < last
        x = tl.load(thickness + i, mask=mine, other=0.0)
        before = carried + _thickness_before(thickness, i, first, last)
        w = tl.exp(-before) * opacity(x)
        tl.store(weights + i, w, mask=mine)
        tl.store(after + i, tl.exp(-(before + x)), mask=mine)
        red += w * tl.load(colors + 3 * i, mask=mine, other=0.0)
        green += w * tl.load(colors + 3 * i + 1, mask=mine, other=0.0)
        blue += w * tl.load(colors + 3 * i + 2, mask=mine, other=0.0)
        total += tl.where(mine, w, 0.0)
        distance += w * tl.load(middles + i, mask=mine, other=0.0)
        carried += tl.sum(x, 0)
        first += BLOCK
    out = sums + ray * 5
    tl.store(out, tl.sum(red, 0))
    tl.store(out + 1, tl.sum(green, 0))
    tl.store(out + 2, tl.sum(blue, 0))
    tl.store(out + 3, tl.sum(total, 0))
    tl.store(out + 4, tl.sum(distance, 0))


@triton.jit
def composite_gradient_kernel(
    colors: ty.Pointer,
    middles: ty.Pointer,
    offsets: ty.Pointer,
    weights: ty.Pointer,
    after: ty.Pointer,
    grad_sums: ty.Pointer,
    grad_weights: ty.Pointer,
    of_thickness: ty.Pointer,
    of_colors: ty.Pointer,
    WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Gradients of thickness [M] and colours [M, 3] of one ray, from its last samples to its first."""
    ray = tl.program_id(0).to(tl.int64)
    begin = tl.load(offsets + ray)
    end = tl.load(offsets + ray + 1)
    red = tl.load(grad_sums + ray * 5)
    green = tl.load(grad_sums + ray * 5 + 1)
    blue = tl.load(grad_sums + ray * 5 + 2)
    of_total = tl.load(grad_sums + ray * 5 + 3)
    of_distance = tl.load(grad_sums + ray * 5 + 4)
    behind = begin.to(tl.float32) * 0.0
    while end > begin:
        # Lane 0 has the last sample.
        lane = tl.arange(0, BLOCK)
        i = end - 1 - lane
        mine = i >= begin
        w = tl.load(weights + i, mask=mine, other=0.0)
        q = red * tl.load(colors + 3 * i, mask=mine, other=0.0)
        q += green * tl.load(colors + 3 * i + 1, mask=mine, other=0.0)
        q += blue * tl.load(colors + 3 * i + 2, mask=mine, other=0.0)
        q += of_total + of_distance * tl.load(middles + i, mask=mine, other=0.0)
        if WEIGHTS:
            q += tl.load(grad_weights + i, mask=mine, other=0.0)
        share = tl.where(mine, w * q, 0.0)
        # Shifted by one, for the reason given in `_thickness_before`.
        neighbour = tl.where(lane > 0, tl.gather(share, tl.maximum(lane - 1, 0), 0), 0.0)
        tail = behind + tl.cumsum(neighbour, 0)
        tl.store(of_thickness + i, tl.load(after + i, mask=mine, other=0.0) * q - tail, mask=mine)
        tl.store(of_colors + 3 * i, w * red, mask=mine)
        tl.store(of_colors + 3 * i + 1, w * green, mask=mine)
        tl.store(of_colors + 3 * i + 2, w * blue, mask=mine)
        behind += tl.sum(share, 0)
        end -= BLOCK


@triton.jit(do_not_specialize=["early_stop", "alpha_threshold"])
def visible_kernel(
    thickness: ty.Pointer,
    offsets: ty.Pointer,
    visible: ty.Pointer,
    early_stop: ty.Scalar,
    alpha_threshold: ty.Scalar,
    BLOCK: tl.constexpr,
) -> None:
    """Which samples of one ray still matter: 0 or 1."""
    ray = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + ray)
    last = tl.load(offsets + ray + 1)
    carried = first.to(tl.float32) * 0.0
    while first < last:
        i = first + tl.arange(0, BLOCK)
        mine = i < last
        x = tl.load(thickness + i, mask=mine, other=0.0)
        before = carried + _thickness_before(thickness, i, first, last)
        seen = (tl.exp(-before) >= early_stop) & (opacity(x) >= alpha_threshold)
        tl.store(visible + i, seen.to(tl.uint8), mask=mine)
        carried += tl.sum(x, 0)
        first += BLOCK


def composite(thickness: Tensor, colors: Tensor, middles: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.composite_torch`; float32. Samples that belong to no ray, behind all others, have weight 0."""
    weights, after = torch.zeros_like(thickness), torch.empty_like(thickness)
    sums = thickness.new_empty(len(offsets) - 1, 5)
    if len(sums):
        arguments = (tensor.contiguous() for tensor in (thickness, colors, middles, offsets))
        composite_kernel[(len(sums),)](*arguments, weights, after, sums, **_OPTIONS)
    return weights, after, sums


def composite_backward(
    colors: Tensor,
    middles: Tensor,
    offsets: Tensor,
    weights: Tensor,
    after: Tensor,
    grad_sums: Tensor,
    grad_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `reference.composite_backward_torch`; float32. Without gradients of the weights, None.

    The gradients are 0 for samples that belong to no ray.
    """
    of_thickness, of_colors = weights.new_zeros(4 * len(weights)).split([len(weights), 3 * len(weights)])
    of_colors = of_colors.view(-1, 3)
    if len(grad_sums):
        saved = (tensor.contiguous() for tensor in (colors, middles, offsets, weights, after, grad_sums))
        of_weights = weights if grad_weights is None else grad_weights.contiguous()
        composite_gradient_kernel[(len(grad_sums),)](
            *saved, of_weights, of_thickness, of_colors, WEIGHTS=grad_weights is not None, **_OPTIONS
        )
    return of_thickness, of_colors


def visible(thickness: Tensor, offsets: Tensor, early_stop: float, alpha_threshold: float) -> Tensor:
    """See `compositing.visible_samples`."""
    found = torch.empty(len(thickness), dtype=torch.uint8, device=thickness.device)
    if len(offsets) > 1:
        visible_kernel[(len(offsets) - 1,)](
            thickness.contiguous(), offsets.contiguous(), found, early_stop, alpha_threshold, **_OPTIONS
        )
    return found.view(torch.bool)
