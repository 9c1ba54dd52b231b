"""Numba kernels for compositing on the CPU. Each thread takes a share of the rays.

No fast-math: NaN must stay NaN, and results must not depend on the machine.
"""

from __future__ import annotations

import math
from typing import Any

import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

import ns_support.kernels.compiling  # noqa: F401 - tells the user when kernels are compiled
from ns_support.concurrency.threads import run_on_threads
from ns_support.kernels.arrays import as_array

Array = npt.NDArray[Any]

_RAYS_PER_TURN = 64
"""Rays that a thread takes at a time: threads stay busy although rays differ in length."""

_jit = njit(nogil=True, cache=True, error_model="numpy")


@_jit
def _visible_share(
    thickness: Array,
    offsets: Array,
    early_stop: float,
    alpha_threshold: float,
    visible: Array,
    thread: int,
    threads: int,
) -> None:
    for block in range(thread * _RAYS_PER_TURN, offsets.shape[0] - 1, threads * _RAYS_PER_TURN):
        for ray in range(block, min(block + _RAYS_PER_TURN, offsets.shape[0] - 1)):
            transmittance = 1.0
            for i in range(offsets[ray], offsets[ray + 1]):
                alpha = -math.expm1(-thickness[i])
                visible[i] = transmittance >= early_stop and alpha >= alpha_threshold
                transmittance *= 1.0 - alpha


def visible(thickness: Tensor, offsets: Tensor, early_stop: float, alpha_threshold: float) -> Tensor:
    """See `compositing.visible_samples`; a mask [M] bool from the optical thickness [M] of each interval."""
    mask = torch.empty(thickness.shape, dtype=torch.bool)
    arrays = (as_array(thickness), as_array(offsets), float(early_stop), float(alpha_threshold), as_array(mask))
    run_on_threads(lambda thread, threads: _visible_share(*arrays, thread, threads))
    return mask


@_jit
def _composite_share(
    thickness: Array,
    colors: Array,
    middles: Array,
    offsets: Array,
    weights: Array,
    after: Array,
    sums: Array,
    thread: int,
    threads: int,
) -> None:
    """Per ray: sums of w c, of w and of w t; `after` is the transmittance behind each interval."""
    for block in range(thread * _RAYS_PER_TURN, offsets.shape[0] - 1, threads * _RAYS_PER_TURN):
        for ray in range(block, min(block + _RAYS_PER_TURN, offsets.shape[0] - 1)):
            transmittance, red, green, blue, total, depth = 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for i in range(offsets[ray], offsets[ray + 1]):
                w = -transmittance * math.expm1(-thickness[i])
                transmittance *= math.exp(-thickness[i])
                red += w * colors[i, 0]
                green += w * colors[i, 1]
                blue += w * colors[i, 2]
                total += w
                depth += w * middles[i]
                weights[i] = w
                after[i] = transmittance
            sums[ray, 0], sums[ray, 1], sums[ray, 2], sums[ray, 3], sums[ray, 4] = red, green, blue, total, depth


@_jit
def _composite_backward_share(
    colors: Array,
    middles: Array,
    offsets: Array,
    weights: Array,
    after: Array,
    grad_sums: Array,
    grad_weights: Array,
    grad_thickness: Array,
    grad_colors: Array,
    thread: int,
    threads: int,
) -> None:
    for block in range(thread * _RAYS_PER_TURN, offsets.shape[0] - 1, threads * _RAYS_PER_TURN):
        for ray in range(block, min(block + _RAYS_PER_TURN, offsets.shape[0] - 1)):
            red, green, blue = grad_sums[ray, 0], grad_sums[ray, 1], grad_sums[ray, 2]
            behind = 0.0
            for i in range(offsets[ray + 1] - 1, offsets[ray] - 1, -1):
                w = float(weights[i])
                q = red * colors[i, 0] + green * colors[i, 1] + blue * colors[i, 2]
                q += float(grad_sums[ray, 3]) + grad_sums[ray, 4] * middles[i] + grad_weights[i]
                grad_thickness[i] = after[i] * q - behind
                behind += w * q
                grad_colors[i, 0] = w * red
                grad_colors[i, 1] = w * green
                grad_colors[i, 2] = w * blue


def composite(thickness: Tensor, colors: Tensor, middles: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.composite_torch`, which defines the result."""
    weights, after = torch.empty_like(thickness), torch.empty_like(thickness)
    sums = thickness.new_empty(offsets.shape[0] - 1, 5)
    arrays = [as_array(x) for x in (thickness, colors, middles, offsets, weights, after, sums)]
    run_on_threads(lambda thread, threads: _composite_share(*arrays, thread, threads))
    return weights, after, sums


def composite_backward(
    colors: Tensor,
    middles: Tensor,
    offsets: Tensor,
    weights: Tensor,
    after: Tensor,
    grad_sums: Tensor,
    grad_weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """See `reference.composite_backward_torch`, which defines the result."""
    grad_thickness, grad_colors = torch.empty_like(weights), torch.empty_like(colors)
    given = (colors, middles, offsets, weights, after, grad_sums, grad_weights, grad_thickness, grad_colors)
    arrays = [as_array(x) for x in given]
    run_on_threads(lambda thread, threads: _composite_backward_share(*arrays, thread, threads))
    return grad_thickness, grad_colors
