"""The caster on a CPU as a differentiable function."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ns_support.kernels.arrays import float_array
from raygauss_ns.casting.cpu import march as cpu
from raygauss_ns.casting.cpu import march_growing as growing
from raygauss_ns.casting.cpu.bvh import build_bvh
from raygauss_ns.casting.cpu.packets import RayArrays
from raygauss_ns.casting.cpu.whitening import parameter_gradients, whitenings_of
from raygauss_ns.casting.types import CastSettings, Rays


def ray_arrays(rays: Rays, ends: Tensor) -> RayArrays:
    """The rays as the kernels' arrays, float32 on the host.

    Args:
        rays: R rays.
        ends: [R] int32, samples of each ray, or where the step grows the distance at which it ends.
    """
    last = float_array(ends) if ends.is_floating_point() else ends.cpu().numpy()
    origins, directions, nears = map(float_array, rays[:3])
    return RayArrays(origins, directions, nears, last, rays.image_width)


class CpuCast(torch.autograd.Function):
    """The forward and the backward march as one operation; not differentiable in the rays."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        scales: Tensor,
        quats: Tensor,
        densities: Tensor,
        colors: Tensor,
        rays: RayArrays,
        settings: CastSettings,
    ) -> Tensor:
        """[R, 5]: red, green, blue, transmittance, depth."""
        shape = float_array(scales), float_array(quats)
        whitenings = whitenings_of(*shape)
        bvh = build_bvh(
            float_array(means), whitenings, float_array(densities), float_array(colors), settings.density_threshold
        )
        out = (growing if settings.grows else cpu).cast_forward(bvh, rays, settings)
        ctx.inputs = (*shape, float_array(densities), whitenings)
        ctx.like = means.new_empty(0)
        ctx.bvh, ctx.rays, ctx.settings, ctx.out = bvh, rays, settings, out
        return torch.from_numpy(out.copy()).to(means.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of means, scales, quaternions, densities and colours."""
        backend = growing if ctx.settings.grows else cpu
        moments = backend.cast_backward(
            ctx.bvh, ctx.rays, ctx.settings, ctx.out, float_array(grad_out), len(ctx.inputs[0])
        )
        gradients = *parameter_gradients(moments, *ctx.inputs), np.ascontiguousarray(moments[:, 10:])
        return *(torch.from_numpy(gradient).to(ctx.like) for gradient in gradients), None, None
