"""The caster on a GPU as a differentiable function.

Importing this module imports Triton.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from raygauss_ns.casting.gpu import kernels_growing, launch
from raygauss_ns.casting.moments import moments_to_gradients
from raygauss_ns.casting.types import CastSettings, Rays, WhitenedGaussians


class GpuCast(torch.autograd.Function):
    """`cast_forward` and `cast_backward` of the kernels as one operation; not differentiable in the rays."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        whitenings: Tensor,
        densities: Tensor,
        colors: Tensor,
        rays: Rays,
        ends: Tensor,
        settings: CastSettings,
    ) -> Tensor:
        """[R, 5]: red, green, blue, transmittance, depth."""
        ctx.settings, ctx.nothing = settings, len(densities) == 0 or len(ends) == 0
        if ctx.nothing:
            _save(ctx, (whitenings, densities))
            return torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]).to(means.device).repeat(len(ends), 1)
        gaussians = WhitenedGaussians(means, whitenings, densities, colors)
        scene, device_rays = launch.scene_and_rays(gaussians, rays, ends, settings)
        out = _kernels(settings).cast_forward(scene, device_rays, settings)
        _save(ctx, (whitenings, densities, out, scene, device_rays))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of means, A, densities and colours."""
        whitenings, densities, *rest = _saved(ctx)
        if ctx.nothing:
            moments = grad_out.new_zeros(len(densities), 13)
        else:
            out, scene, rays = rest
            moments = _kernels(ctx.settings).cast_backward(scene, rays, ctx.settings, out, grad_out.contiguous())
        gradients = moments_to_gradients(moments.to(whitenings.dtype), whitenings, densities)
        return *gradients, None, None, None


def _kernels(settings: CastSettings) -> ModuleType:
    return kernels_growing if settings.grows else launch


def _save(ctx: Any, value: Any) -> None:
    """Keep a nest of tuples for the backward pass, its tensors as autograd wants them kept."""
    leaves, ctx.structure = tree_flatten(value)
    ctx.others = [(not isinstance(leaf, Tensor), None if isinstance(leaf, Tensor) else leaf) for leaf in leaves]
    ctx.save_for_backward(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))


def _saved(ctx: Any) -> Any:
    tensors = iter(ctx.saved_tensors)
    return tree_unflatten([leaf if is_other else next(tensors) for is_other, leaf in ctx.others], ctx.structure)
