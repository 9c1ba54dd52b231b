"""Which Gaussians exist: clone, split and prune, with the optimisers' state carried along.

Statistic of a Gaussian: the mean of |dL/dmu| over the steps that saw it. Where it exceeds the threshold, a Gaussian
whose largest scale is at most 0.01 camera extents is cloned, a larger one is split in two (positions drawn from it,
scales divided by 1.6). Either way both have half the density. Gaussians with sigma <= eps go.

What makes one threshold serve images and windows of any size. With W pixels in the image, P of them under the Gaussian,

    L = 1/W sum_p l_p,   dL/dmu = 1/W sum_{p in P} (dl_p / dC_p) (dC_p / dmu)

mu is a length in the scene and not in pixels, so dC/dmu does not know the resolution; the sum over P divided by W is a
Riemann sum of an integral over the image's area. It converges: once a Gaussian spans a few pixels, more of them change
nothing. (The gradient in pixels that 3D Gaussian splatting uses falls with the resolution.) What does depend on it is
noise: where the signs of the residual under a Gaussian are those of detail far below its size, the sum grows with
sqrt(P) only, and the statistic falls like 1/f. Low resolutions call for more Gaussians than high ones at one threshold,
for which there are `max_gaussians` and s >= half a pixel.

- A step on a window divides by the window's pixels: the gradient is multiplied by the window's share of the image.
  It is then the part of the image's gradient that comes from the window.
- Of a Gaussian at the window's edge only a part is inside, and it is met by more windows than one of no extent would
  be. Over windows at random places the parts sum to the whole times the number of windows that hold the centre, so
  these are what the mean divides by: a step counts for a Gaussian that got a gradient unless the image shows its
  centre outside the window.
- L does not know lengths: |dL/dmu| is multiplied by u, the scene's unit.
- A step of a group whose gradients are averaged before the optimiser's step counts in full.

RayGaussX multiplies by max(1, distance to the step's camera / u): far Gaussians cover fewer pixels, which is no reason
to leave them coarse.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gsplat.strategy.ops import duplicate, remove, split
from torch import Tensor, nn
from torch.optim import Optimizer

from ns_support.concurrency.processes import Processes
from raygauss_ns.gaussians.projection import View

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
        distance_weighted: whether the statistic is multiplied by max(1, distance to the camera) (RayGaussX).
    """

    first: int
    last: int
    every: int
    threshold: float
    max_gaussians: int
    distance_weighted: bool = False


class DensityControl(nn.Module):
    """The running statistic (part of the checkpoint, so that a resumed run goes on as if never stopped) and the rounds.

    Args:
        count: number of Gaussians.
        schedule: when and where they multiply.
        density_threshold: eps, in the units of `params["densities"]`.
    """

    gradient_sum: Tensor
    times_seen: Tensor
    log_scale_floor: Tensor

    def __init__(self, count: int, schedule: DensitySchedule, density_threshold: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.density_threshold = density_threshold
        self.register_buffer("gradient_sum", torch.zeros(count))
        self.register_buffer("times_seen", torch.zeros(count))
        # Of the scales: kept here so that a resumed run has the bounds of the run that it resumes; empty: none yet.
        self.register_buffer("log_scale_floor", torch.zeros(0))
        self._observed: Tensor | None = None

    @torch.no_grad()
    def observe(self, gradient: Tensor, means: Tensor, unit: float, view: View | None, images: int = 1) -> None:
        """Measure an image's gradient, for `add_observed` to add to the statistic.

        Args:
            gradient: [N, 3] dL/dmu of that image alone.
            means: [N, 3] positions.
            unit: u (scene units).
            view: the part of the image that was looked at; None: rays of no one camera, taken for a whole image at a
                distance below u.
            images: how many images' gradients are averaged, each image's loss having been divided by that number.
        """
        norms = torch.linalg.vector_norm(gradient, dim=-1) * (unit * images)
        seen = norms > 0
        if view is not None:
            norms *= view.share
            if self.schedule.distance_weighted:
                norms *= (view.distances(means) / unit).clamp_min(1.0)
            if view.share < 1:
                seen &= ~view.misses(means)
        found = torch.stack([norms, seen.to(norms)])
        self._observed = found if self._observed is None else self._observed + found

    @torch.no_grad()
    def add_observed(self, processes: Processes) -> None:
        """Add to the statistic what was observed since the last call, in all processes.

        The sum over the images of a step comes first: which process saw which of them then changes no rounding.

        Args:
            processes: that train together; all call this.
        """
        found, self._observed = self._observed, None
        if processes.size > 1:
            found = processes.sum(self.gradient_sum.new_zeros(2, len(self.gradient_sum)) if found is None else found)
        if found is not None:
            self.gradient_sum += found[0]
            self.times_seen += found[1]

    @torch.no_grad()
    def densify(self, params: nn.ParameterDict, optimizers: dict[str, Optimizer], extent: float, seed: int) -> int:
        """Clone and split where the statistic is high, and start it afresh.

        Args:
            params: the parameters of `GaussianCloud`; replaced by larger ones.
            optimizers: an optimiser for each of them; new Gaussians start without momentum.
            extent: camera extent (scene units).
            seed: decides where the halves of split Gaussians land; the global generators are left as they are.

        Returns:
            By how many Gaussians the set grew.
        """
        before = len(self.gradient_sum)
        statistic = self.statistic
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
            device = params["means"].device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                split(params, optimizers, {}, divided)
        self._restart(len(params["means"]))
        self.log_scale_floor = self.log_scale_floor.new_zeros(0)
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
            self.log_scale_floor = self.log_scale_floor.new_zeros(0)
        return left

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Follow Gaussians that have moved in memory.

        Args:
            order: [N] int64, where each was before.
        """
        for values in (self.gradient_sum, self.times_seen, self.log_scale_floor):
            if len(values) > 0:  # there are no bounds on the scales right after a round
                values.copy_(values[order])

    @property
    def statistic(self) -> Tensor:
        """[N] mean of |dL/dmu| u over the steps that saw each Gaussian (times the loss's unit)."""
        return self.gradient_sum / self.times_seen.clamp_min(1)

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
        floor = state_dict.get(f"{prefix}log_scale_floor")
        if floor is not None:
            self.log_scale_floor = self.log_scale_floor.new_zeros(len(floor))
        super()._load_from_state_dict(state_dict, prefix, *args)
