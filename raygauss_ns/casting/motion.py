"""The gradient of a cast image with respect to the pose of its camera, from the gradients of the Gaussians.

A camera that moves by a small rigid motion, x -> x + w x x + v in the world, sees what it would see if it stood still
and the Gaussians moved the other way. With G_l = dL/dmu_l through the geometry, q_l the quaternions, and h_l = dL/dmu_l
through the direction (mu_l - o) in which a colour is seen from o,

    dL/dv = -sum_l (G_l + h_l)        dL/dw = -sum_l (mu_l x G_l + tau_l) - o x sum_l h_l
    tau_l . e_k = dL/dq_l . (e_k q_l) / 2        (e_k q: product of quaternions)

The motion is a tensor (v, w) [6] of value 0: nothing moves, only gradients are passed on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raygauss_ns.casting.types import Gaussians


def moved_against(gaussians: Gaussians, motion: Tensor) -> Gaussians:
    """The same Gaussians, whose gradient also reaches the motion of the camera that they are cast for.

    Args:
        gaussians: N Gaussians.
        motion: [6] v (scene units) and w (radians), of value 0.
    """
    means, quats = _Moved.apply(gaussians.means, gaussians.quats, motion)
    return gaussians._replace(means=means, quats=quats)


def seen_from(means: Tensor, center: Tensor, motion: Tensor) -> Tensor:
    """The same means [N, 3], whose gradient through the direction from a point also reaches the point's motion.

    Args:
        means: [N, 3].
        center: [3] o, the point that moves with the camera.
        motion: [6] v and w, of value 0.
    """
    return _Seen.apply(means, center, motion)


def turned_with(direction: Tensor, motion: Tensor) -> Tensor:
    """The same direction [3], which turns with the camera."""
    return direction + torch.linalg.cross(motion[3:], direction)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means: Tensor, quats: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(means, quats)
        return means.view_as(means), quats.view_as(quats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_means: Tensor, of_quats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means, quats = ctx.saved_tensors
        turn = torch.linalg.cross(means, of_means).sum(0)
        # e_k q = (-q_k, q_0 e_k + e_k x q_v): the real part of dL/dq meets -q_v, and so on.
        real, vector = quats[:, :1], quats[:, 1:]
        of_real, of_vector = of_quats[:, :1], of_quats[:, 1:]
        torque = real * of_vector - of_real * vector + torch.linalg.cross(vector, of_vector)
        return of_means, of_quats, -torch.cat([of_means.sum(0), turn + torque.sum(0) / 2])


class _Seen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means: Tensor, center: Tensor, motion: Tensor) -> Tensor:
        ctx.save_for_backward(center)
        return means.view_as(means)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_means: Tensor) -> tuple[Tensor, None, Tensor]:
        (center,) = ctx.saved_tensors
        shift = of_means.sum(0)
        return of_means, None, -torch.cat([shift, torch.linalg.cross(center, shift)])
