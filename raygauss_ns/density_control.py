"""Which Gaussians exist: clone, split and prune, with the optimisers' state carried along.

Statistic of a Gaussian: the mean of |dL/dmu| over the steps that saw it, times u (the scene's unit) to be free of its
scale. L is a mean over pixels, so the statistic does not depend on the image's resolution; a step on a window of the
image divides by fewer pixels and is weighted by the window's share of the image. Where the statistic exceeds the
threshold, a Gaussian whose largest scale is at most 0.01 camera extents is cloned, a larger one is split in two
(positions drawn from it, scales divided by 1.6). Either way both have half the density. Gaussians with sigma <= eps go.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gsplat.strategy.ops import duplicate, remove, split
from torch import Tensor, nn
from torch.optim import Optimizer

CLONE_SCALE = 0.01
"""Largest scale, in camera extents, of a Gaussian that is cloned instead of split (Kerbl et al. 2023)."""


class DensitySchedule(NamedTuple):
    """When and where Gaussians multiply.

    Attributes:
        first: step from which on Gaussians are cloned and split.
        last: step after which they no longer are.
        every: steps between two rounds.
        threshold: statistic above which a Gaussian multiplies (1/u, times the loss).
        max_gaussians: number that cloning and splitting never exceed.
    """

    first: int
    last: int
    every: int
    threshold: float
    max_gaussians: int


class DensityControl(nn.Module):
    """The running statistic (part of the checkpoint, so that a resumed run goes on as if never stopped) and the rounds.

    Args:
        count: number of Gaussians.
        schedule: when and where they multiply.
        density_threshold: eps, in the units of `params["densities"]`.
    """

    gradient_sum: Tensor
    times_seen: Tensor

    def __init__(self, count: int, schedule: DensitySchedule, density_threshold: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.density_threshold = density_threshold
        self.register_buffer("gradient_sum", torch.zeros(count))
        self.register_buffer("times_seen", torch.zeros(count))

    @torch.no_grad()
    def record(self, gradient: Tensor | None, weight: float) -> None:
        """Add a step to the statistic.

        Args:
            gradient: [N, 3] dL/dmu of that step; None when no ray met anything.
            weight: u times the share of the image's pixels that the step's loss was a mean of.
        """
        if gradient is None:
            return
        norms = torch.linalg.vector_norm(gradient, dim=-1) * weight
        self.gradient_sum += norms
        self.times_seen += norms > 0

    @torch.no_grad()
    def multiply(self, params: nn.ParameterDict, optimizers: dict[str, Optimizer], extent: float) -> int:
        """Clone and split where the statistic is high, and start it afresh.

        Args:
            params: the parameters of `GaussianCloud`; replaced by larger ones.
            optimizers: an optimiser for each of them; new Gaussians start without momentum.
            extent: camera extent (scene units).

        Returns:
            By how many Gaussians the set grew.
        """
        before = len(self.gradient_sum)
        statistic = self.gradient_sum / self.times_seen.clamp_min(1)
        chosen = statistic > self.schedule.threshold
        room = max(self.schedule.max_gaussians - before, 0)
        if int(chosen.sum()) > room:
            chosen = torch.zeros_like(chosen)
            chosen[torch.topk(statistic, room).indices] = True
        small = params["scales"].exp().amax(-1) <= CLONE_SCALE * extent
        cloned, divided = chosen & small, chosen & ~small
        params["densities"][chosen] *= 0.5
        if bool(cloned.any()):
            duplicate(params, optimizers, {}, cloned)
            divided = torch.cat([divided, divided.new_zeros(len(params["means"]) - before)])
        if bool(divided.any()):
            split(params, optimizers, {}, divided)
        self._restart(len(params["means"]))
        return len(params["means"]) - before

    @torch.no_grad()
    def prune(self, params: nn.ParameterDict, optimizers: dict[str, Optimizer]) -> int:
        """Remove the Gaussians that have faded: they have no support and would never get a gradient again.

        Args:
            params: the parameters of `GaussianCloud`; replaced by smaller ones.
            optimizers: an optimiser for each of them; their state shrinks too.

        Returns:
            How many are left. When that is 0 nothing was removed: an optimiser without parameters helps nobody.
        """
        faded = ~(params["densities"] > self.density_threshold)
        left = len(faded) - int(faded.sum())
        if 0 < left < len(faded):
            state = {"gradient_sum": self.gradient_sum, "times_seen": self.times_seen}
            remove(params, optimizers, state, faded)
            self.gradient_sum, self.times_seen = state["gradient_sum"], state["times_seen"]
        return left

    def is_due(self, step: int) -> bool:
        """Whether Gaussians multiply after this step."""
        s = self.schedule
        return s.first <= step <= s.last and step % s.every == 0

    def _restart(self, count: int) -> None:
        self.gradient_sum = self.gradient_sum.new_zeros(count)
        self.times_seen = self.times_seen.new_zeros(count)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}gradient_sum")
        if stored is not None:
            self._restart(len(stored))
        super()._load_from_state_dict(state_dict, prefix, *args)


@torch.no_grad()
def smallest_resolved_scale(means: Tensor, world_to_cameras: Tensor, intrinsics: Tensor) -> Tensor:
    """Half a pixel's size at the Gaussian, in the camera that sees it most finely: s >= 0.5 z_min / f_max.

    Below that a Gaussian is smaller than what any training image resolves, and only aliases.

    Args:
        means: [N, 3].
        world_to_cameras: [C, 3, 4]; cameras look along their -z axis.
        intrinsics: [C, 6]: fx, fy, cx, cy, width, height (pixels).

    Returns:
        [N] (scene units); 0 for a Gaussian that no camera sees.
    """
    finest = means.new_full((len(means),), torch.inf)
    for camera, (fx, fy, cx, cy, width, height) in zip(world_to_cameras, intrinsics.tolist(), strict=True):
        x, y, z = (means @ camera[:, :3].T + camera[:, 3]).unbind(-1)
        distance = -z
        column, row = cx + fx * x / distance, cy - fy * y / distance
        seen = (distance > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        finest = torch.minimum(finest, torch.where(seen, distance / max(fx, fy), torch.inf))
    return torch.where(finest.isfinite(), 0.5 * finest, 0.0)
