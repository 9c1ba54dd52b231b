"""The caster as a differentiable function: 13 moments per Gaussian become gradients of its parameters.

With y = A (x - mu), f = sigma exp(-|y|^2 / 2) and w = dL/df summed over all samples:

    M0 = sum w f,  Y1 = sum w f (x - mu),  Y2 = sum w f (x - mu)(x - mu)^T
    dL/dmu = A^T A Y1,   dL/dA = -A Y2,   dL/dsigma = M0 / sigma,   dL/dc = sum over samples of P f g
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ns_support.kernels.arrays import float_array
from raygauss_ns.casting.cpu import march as cpu
from raygauss_ns.casting.cpu import march_growing as growing
from raygauss_ns.casting.cpu.bvh import build_bvh
from raygauss_ns.casting.cpu.packets import Rays
from raygauss_ns.casting.cpu.whitening import parameter_gradients, whitenings_of
from raygauss_ns.casting.types import CastSettings


def rays_from_tensors(origins: Tensor, directions: Tensor, nears: Tensor, ends: Tensor, image_width: int) -> Rays:
    """The rays as the kernels' arrays, float32 on the host.

    Args:
        origins: [R, 3].
        directions: [R, 3].
        nears: [R].
        ends: [R] int32, samples of each ray, or where the step grows the distance at which it ends.
        image_width: pixels of a row, 0 for rays of no order.
    """
    last = float_array(ends) if ends.is_floating_point() else ends.cpu().numpy()
    return Rays(float_array(origins), float_array(directions), float_array(nears), last, image_width)


class CpuCast(torch.autograd.Function):
    """`cast_forward` and `cast_backward` of `cpu` or `growing` as one operation; not differentiable in the rays."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        scales: Tensor,
        quats: Tensor,
        densities: Tensor,
        colors: Tensor,
        rays: Rays,
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
