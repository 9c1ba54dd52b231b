"""How far to move cameras of which a training step sees single rays: the curvature from the rays' own gradients.

With r_p the residuals of a ray's three colours and J_p their derivatives with respect to its camera's motion, the loss
L = sum_p |r_p|^2 / (3 R) gives the ray the gradient g_p = 2 J_p^T r_p / (3 R). The matrix of Gauss and Newton,
2 / (3 R) sum_p J_p^T J_p, is estimated by

    H = 3 R / 2 sum_p g_p g_p^T / |r_p|^2

which sees of J_p its part along the residual. Residuals and edges are mostly brighter or darker, in all colours alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LEAST = 0.01
"""Part of the mean squared residual that a ray's counts at least: below it is rounding."""


@dataclass
class RaysSeen:
    """The R rays of a training step.

    Attributes:
        photos: [R] int64, whose they are.
        frames: [R, 3, 3] the rotations of their cameras, camera to world.
        unit: length of a shift of 1 (scene units).
        squares: [R] their squared residuals, summed over the colours; None until they are known.
    """

    photos: Tensor
    frames: Tensor
    unit: float
    squares: Tensor | None = None


def observed(offsets: Tensor, directions: Tensor, place: Tensor, rays: RaysSeen) -> tuple[Tensor, Tensor]:
    """Rays as they are, whose gradient also tells the curvature of the loss to `VisitNewton`.

    Args:
        offsets: [R, 3] origins relative to the cameras' centres.
        directions: [R, 3].
        place: [N, 6, 6] zeros, one for each photograph; their gradient is the curvature by shift (units) and turn.
        rays: what else is known of them; their residuals before the gradient is computed.
    """
    offsets, directions = _Observed.apply(offsets, directions, place, rays)
    return offsets, directions


class _Observed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, offsets: Tensor, directions: Tensor, place: Tensor, rays: RaysSeen) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(offsets, directions)
        ctx.rays, ctx.count = rays, len(place)
        return offsets.view_as(offsets), directions.view_as(directions)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_offsets: Tensor, of_directions: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        rays, (offsets, directions) = ctx.rays, ctx.saved_tensors
        if rays.squares is None:
            return of_offsets, of_directions, None, None
        turn = torch.linalg.cross(offsets, of_offsets) + torch.linalg.cross(directions, of_directions)
        world = torch.stack([of_offsets * rays.unit, turn], dim=1)  # [R, shift or turn, 3]
        own = (world @ rays.frames).flatten(1)
        least = (_LEAST * rays.squares.mean()).clamp_min(1e-12)
        weights = 1.5 * len(own) / rays.squares.clamp_min(least)
        products = (weights[:, None, None] * own[:, :, None] * own[:, None]).flatten(1)
        sums = products.new_zeros(ctx.count, 36).index_add(0, rays.photos, products)
        return of_offsets, of_directions, sums.view(-1, 6, 6), None
