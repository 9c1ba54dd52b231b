"""The caster on a GPU as a differentiable function.

Importing this module imports Triton.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ns_support.kernels.constants import constant
from raygauss_ns.casting.gpu import kernels_growing, launch
from raygauss_ns.casting.gpu.geometry import geometry_gradients
from raygauss_ns.casting.types import CastSettings, Rays


class GpuCast(torch.autograd.Function):
    """`cast_forward` and `cast_backward` of the kernels as one operation; not differentiable in the rays."""

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Colours [R, 3], transmittances [R] and depths [R]."""
        ctx.settings, ctx.nothing = settings, len(densities) == 0 or len(rays.origins) == 0
        ctx.set_materialize_grads(False)
        if ctx.nothing:
            _save(ctx, (means, scales, quats, densities, colors))
            out = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]).to(means.device).repeat(len(rays.origins), 1)
            lengths = torch.linalg.vector_norm(rays.directions.detach(), dim=-1, keepdim=True)
            out = torch.where((lengths - 1).abs() < 1e-3, out, torch.nan)
        else:
            inputs = (means, scales, quats, densities, colors)
            parameters = tuple(tensor.detach().float().contiguous() for tensor in inputs)
            scene, device_rays = launch.scene_and_rays(parameters, rays, settings)
            out = _kernels(settings).cast_forward(scene, device_rays, settings)
            _save(ctx, (parameters[1:3], out, scene, device_rays))
        return out[:, :3], out[:, 3], out[:, 4]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *of_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of means, scales, quats, densities and colours."""
        if ctx.nothing:
            return *(torch.zeros_like(tensor) for tensor in _saved(ctx)), None, None
        (scales, quats), out, scene, rays = _saved(ctx)
        zero = constant(0.0, out.device)
        of_color, of_transmittance, of_depth = of_outputs
        columns = [
            zero.expand(len(out), 3) if of_color is None else of_color,
            *(zero.expand(len(out), 1) if of is None else of[:, None] for of in (of_transmittance, of_depth)),
        ]
        grad_out = torch.cat([column.float() for column in columns], 1)
        sums = _kernels(ctx.settings).cast_backward(scene, rays, ctx.settings, out, grad_out)
        hierarchy = scene.hierarchy
        ordered = (hierarchy.order, hierarchy.records, hierarchy.squared_cutoff)
        return *geometry_gradients(sums, *ordered, scales, quats), None, None


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
