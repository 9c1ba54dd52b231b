"""Emission-absorption compositing of packed samples, with its exact gradient.

Along a ray, with density sigma_i, interval length delta_i and x_i = sigma_i delta_i (optical thickness):

    alpha_i = 1 - exp(-x_i),   T_i = exp(-sum over j < i of x_j),   w_i = T_i alpha_i
    color = sum w_i c_i,   accumulation = sum w_i,   distance = sum w_i t_i

and for a loss whose gradient with respect to w_i is q_i,

    dL/dx_i = T_{i+1} q_i - sum over j > i of w_j q_j,   dL/dc_i = w_i dL/dcolor.

Sums over a ray are never the difference of one float32 sum over all rays: at 258k samples that is wrong by 0.03. The
references take differences of a float64 sum, in which no ray may drown those behind it: x counts as _OPAQUE at most,
and what is not finite spoils the rest of its own ray alone. In the backward pass a finite gradient 10^9 times those of
the other rays would still blur them; the kernels have no such limit.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardmine_ns.marching.cpu import compositing as cpu
from hardmine_ns.marching.reference import _OPAQUE, _exclusive_sums, composite_backward_torch, composite_torch
from hardmine_ns.marching.samples import PackedSamples
from ns_support.kernels.backend import triton_module


class Composite(NamedTuple):
    """What compositing gives for R rays with M samples."""

    color: Tensor
    """[R, 3] without background."""
    accumulation: Tensor
    """[R] opacity in [0, 1]."""
    distance: Tensor
    """[R] sum of w t; the expected distance is this divided by the accumulation."""
    weights: Tensor
    """[M] w."""


def composite(densities: Tensor, colors: Tensor, samples: PackedSamples) -> Composite:
    """Composite every ray front to back. Differentiable in densities and colours, through all four results.

    Args:
        densities: [M] sigma >= 0, per unit of distance.
        colors: [M, 3] of the same dtype.
        samples: the M intervals; no gradient flows to their positions.

    Returns:
        Colour, accumulation, distance and weights.

    Raises:
        ValueError: if shapes don't fit the samples.
    """
    if densities.shape != (len(samples),) or colors.shape != (len(samples), 3):
        raise ValueError(
            f"densities must be [{len(samples)}] and colors [{len(samples)}, 3], "
            f"got {list(densities.shape)} and {list(colors.shape)}"
        )
    thickness = densities * (samples.t_ends - samples.t_starts).to(densities.dtype)
    sums, weights = _Composite.apply(thickness, colors, samples)
    return Composite(sums[:, :3], sums[:, 3], sums[:, 4], weights)


@torch.no_grad()
def visible_samples(
    densities: Tensor, samples: PackedSamples, early_stop: float = 1e-4, alpha_threshold: float = 0.0
) -> Tensor:
    """Say which samples still matter (nerfacc's rule).

    Args:
        densities: [M] sigma >= 0.
        samples: the M intervals.
        early_stop: transmittance T in [0, 1] below which a sample is hidden.
        alpha_threshold: opacity alpha in [0, 1] below which a sample is empty. It still dims what is behind it.

    Returns:
        [M] bool: T_i >= early_stop and alpha_i >= alpha_threshold.
    """
    thickness = densities * (samples.t_ends - samples.t_starts)
    if thickness.device.type == "cpu":
        return cpu.visible(thickness, samples.offsets, early_stop, alpha_threshold)
    if _has_gpu_kernels(thickness):
        found: Tensor = _gpu().visible(thickness, samples.offsets, early_stop, alpha_threshold)
        return found
    transmittance = torch.exp(-_exclusive_sums(thickness.clamp(max=_OPAQUE), samples))
    return (transmittance >= early_stop) & (-torch.expm1(-thickness) >= alpha_threshold)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, thickness: Tensor, colors: Tensor, samples: PackedSamples) -> tuple[Tensor, Tensor]:
        middles = samples.midpoints.to(thickness.dtype)
        if thickness.device.type == "cpu":
            weights, after, sums = cpu.composite(thickness, colors, middles, samples.offsets)
        elif _has_gpu_kernels(thickness, colors):
            weights, after, sums = _gpu().composite(thickness, colors, middles, samples.offsets)
        else:
            weights, after, sums = composite_torch(thickness, colors, middles, samples)
        ctx.samples = samples
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(colors, middles, weights, after)
        return sums, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor | None, grad_weights: Tensor | None) -> tuple[Tensor, Tensor, None]:
        colors, middles, weights, after = ctx.saved_tensors
        grad_sums = weights.new_zeros(ctx.samples.num_rays, 5) if grad_sums is None else grad_sums
        if _has_gpu_kernels(weights, colors):
            given = (weights, after, grad_sums, grad_weights)
            return (*_gpu().composite_backward(colors, middles, ctx.samples.offsets, *given), None)
        grad_weights = torch.zeros_like(weights) if grad_weights is None else grad_weights
        rest = (weights, after, grad_sums, grad_weights)
        if weights.device.type == "cpu":
            grads = cpu.composite_backward(colors, middles, ctx.samples.offsets, *rest)
        else:
            grads = composite_backward_torch(colors, middles, ctx.samples, *rest)
        return (*grads, None)


def _has_gpu_kernels(*tensors: Tensor) -> bool:
    return all(tensor.is_cuda and tensor.dtype == torch.float32 for tensor in tensors)


def _gpu() -> ModuleType:
    return triton_module("hardmine_ns.marching.gpu.compositing", "compositing on a GPU")
