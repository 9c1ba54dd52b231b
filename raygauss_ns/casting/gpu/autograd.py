"""The caster on a GPU as a differentiable function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raygauss_ns.casting.types import CastSettings


def moments_to_gradients(
    moments: Tensor, whitenings: Tensor, densities: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of means, A, densities and colours from the 13 moments.

    Args:
        moments: [N, 13]: M0, Y1 (3), Y2 (xx, xy, xz, yy, yz, zz), colour (3).
        whitenings: [N, 3, 3] the matrices A.
        densities: [N] peak densities.

    Returns:
        [N, 3], [N, 3, 3], [N] and [N, 3]; zero for a Gaussian whose moments are zero, whatever its parameters.
    """
    m0, y1, y2, grad_colors = moments.split([1, 3, 6, 3], dim=-1)
    # By columns: a list as an index would be copied to a GPU, and the host would wait for that.
    xx, xy, xz, yy, yz, zz = y2.unbind(-1)
    second = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).view(-1, 3, 3)
    grad_means = torch.einsum("nji,nj->ni", whitenings, torch.einsum("nij,nj->ni", whitenings, y1))
    grad_whitenings = -whitenings @ second
    grad_densities = torch.where(m0[:, 0] != 0, m0[:, 0] / densities, 0.0)
    return grad_means, grad_whitenings, grad_densities, grad_colors


class GpuCast(torch.autograd.Function):
    """`cast_forward` and `cast_backward` of `gpu` or `gpu_growing` as one operation; not differentiable in the rays."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        whitenings: Tensor,
        densities: Tensor,
        colors: Tensor,
        origins: Tensor,
        directions: Tensor,
        nears: Tensor,
        ends: Tensor,
        image_width: int,
        settings: CastSettings,
    ) -> Tensor:
        """[R, 5]: red, green, blue, transmittance, depth."""
        from raygauss_ns.casting.gpu import kernels_growing as gpu_growing
        from raygauss_ns.casting.gpu import launch as gpu

        ctx.settings, ctx.nothing = settings, len(densities) == 0 or len(nears) == 0
        if ctx.nothing:
            ctx.save_for_backward(whitenings, densities)
            return torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]).to(means.device).repeat(len(nears), 1)
        scene, rays = gpu.scene_and_rays(
            (means, whitenings, densities, colors), (origins, directions, nears, ends), image_width, settings
        )
        out = (gpu_growing if settings.grows else gpu).cast_forward(scene, rays, settings)
        ctx.save_for_backward(whitenings, densities, out, *scene.bvh, *rays[:-1], *(scene.lists or ()))
        ctx.width = image_width
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of means, A, densities and colours."""
        from raygauss_ns.casting.gpu import (
            bvh as gpu_bvh,
        )
        from raygauss_ns.casting.gpu import (
            kernels_growing as gpu_growing,
        )
        from raygauss_ns.casting.gpu import (
            launch as gpu,
        )
        from raygauss_ns.casting.gpu import (
            tile_lists as gpu_lists,
        )

        whitenings, densities, *rest = ctx.saved_tensors
        if ctx.nothing:
            moments = grad_out.new_zeros(len(densities), 13)
        else:
            out, bvh = rest[0], gpu_bvh.GpuBvh(*rest[1:6])
            rays = gpu.GpuRays(rest[6], rest[7], rest[8], rest[9], rest[10], ctx.width)
            scene = gpu.GpuScene(bvh, gpu_lists.GpuLists(*rest[11:]) if len(rest) > 11 else None)
            backend = gpu_growing if ctx.settings.grows else gpu
            moments = backend.cast_backward(scene, rays, ctx.settings, out, grad_out.contiguous())
        gradients = moments_to_gradients(moments.to(whitenings.dtype), whitenings, densities)
        return *gradients, None, None, None, None, None, None
