"""Density control: where Gaussians are added and removed, together with the optimisers' state.

Two strategies share a statistic. The published one (below) clones and splits wherever it exceeds a threshold, until
there are as many Gaussians as allowed. Relocation (`relocation`) follows a number: the set grows by the same factor in
each round, so that it is complete at a given step, and from then on Gaussians only move.

The statistic of a Gaussian is the mean of |dL/dmu| over the steps that saw it. If it exceeds the threshold, a Gaussian
whose largest scale is at most 0.01 camera extents is cloned, and a larger one is split in two (positions drawn from it,
scales divided by 1.6). Either way both have half the density. Gaussians with sigma <= eps are pruned.

Why one threshold suits images and crops of any size: with W pixels in the image, P of them under the Gaussian,

    L = 1/W sum_p l_p,   dL/dmu = 1/W sum_{p in P} (dl_p / dC_p) (dC_p / dmu)

mu is a length in the scene and not in pixels, so dC/dmu does not depend on the resolution. The sum over P divided by W
is a Riemann sum of an integral over the image's area, and it converges: once a Gaussian spans a few pixels, a higher
resolution no longer changes it. (The gradient in pixels that 3D Gaussian splatting uses falls with the resolution.)
Noise does depend on the resolution: where the residual under a Gaussian varies in sign on a scale far below its size,
the sum grows only with sqrt(P), and the statistic falls like 1/f. At the same threshold, low resolutions therefore
produce more Gaussians than high ones. `max_gaussians` and the minimum scale of half a pixel limit this.

- A step on a crop divides by the crop's pixels, so the gradient is multiplied by the crop's fraction of the image. It
  is then the crop's part of the image's gradient.
- A Gaussian at a crop's edge is only partly inside, and it intersects more crops than a point would. Over random crops
  the parts sum to the whole times the number of crops that contain the centre, so the mean divides by this number: a
  step counts for a Gaussian that got a gradient, unless its centre is in the image but outside the crop.
- The loss has no unit of length: |dL/dmu| is multiplied by the scene scale u.
- With gradient accumulation, each image counts in full.

RayGaussX multiplies by max(1, distance to the step's camera / u): distant Gaussians cover fewer pixels, but should not
stay coarse for that reason.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from gsplat.strategy.ops import duplicate, remove, split
from torch import Tensor, nn
from torch.optim import Optimizer

from ns_support.concurrency.processes import Processes
from ns_support.errors import UserError
from ns_support.kernels.backend import triton_module
from raygauss_ns.gaussians.density.relocation import FAINT, divide, weighted_choice
from raygauss_ns.gaussians.optics import optical_depths
from raygauss_ns.gaussians.projection import View

CLONE_SCALE = 0.01
"""Largest scale, in camera extents, of a Gaussian that is cloned instead of split (Kerbl et al. 2023)."""


class DensitySchedule(NamedTuple):
    """When and where Gaussians are densified (cloned or split).

    Attributes:
        first: first step of densification.
        last: last step of densification.
        every: steps between two rounds.
        threshold: statistic above which a Gaussian is cloned or split (1/u, times the unit of the loss).
        max_gaussians: number of Gaussians that cloning and splitting never exceed.
        distance_weighted: whether the statistic is multiplied by max(1, distance to the camera) (RayGaussX).
        grow_until: relocation: step at which there are `max_gaussians`; None: the published strategy.
    """

    first: int
    last: int
    every: int
    threshold: float
    max_gaussians: int
    distance_weighted: bool = False
    grow_until: int | None = None

    def grown(self, count: int, step: int, limit: float = math.inf) -> int:
        """How many Gaussians there should be after a round, if there are `count` before it; never more than `limit`.

        The rounds that are left until `grow_until` grow the set by the same factor each. That follows from the number
        at hand, so it needs no memory, and whatever else removes Gaussians is made up for.

        Example:
            >>> schedule = DensitySchedule(0, 100, 10, 1.0, max_gaussians=800, grow_until=20)
            >>> [schedule.grown(100, 0), schedule.grown(200, 10), schedule.grown(400, 20), schedule.grown(300, 30)]
            [200, 400, 800, 800]
        """
        assert self.grow_until is not None
        rounds = max((self.grow_until - step) // self.every + 1, 1)
        return round(min(count * (self.max_gaussians / count) ** (1 / rounds), limit))


class DensityControl(nn.Module):
    """The running statistic, and the densification rounds based on it.

    The statistic is part of the checkpoint, so that a resumed run continues as if it had never stopped.

    Args:
        count: number of Gaussians.
        schedule: when and where they are densified.
        density_threshold: density cutoff eps, in the units of `params["densities"]`.
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
        # Lower bounds of the scales, part of the checkpoint: a resumed run must use the bounds of the run that it
        # continues. Empty: not computed yet.
        self.register_buffer("log_scale_floor", torch.zeros(0))
        self._observed: Tensor | None = None

    @torch.no_grad()
    def observe(
        self, gradient: Tensor, means: Tensor, unit: float, view: View | None, images: int = 1, weight: float = 1.0
    ) -> None:
        """Measure an image's gradient, for `add_observed` to add to the statistic.

        Args:
            gradient: [N, 3] dL/dmu of that image alone.
            means: [N, 3] positions.
            unit: scene scale u (scene units).
            view: the crop of the image that was rendered; None: rays that belong to no single camera, treated as a
                whole image at a distance below u.
            images: number of images over which gradients are averaged; each image's loss was divided by it.
            weight: factor on the image's loss, since its crop was more or less likely than others: so much counts that
                a Gaussian was seen, too.
        """
        pinhole = view is None or view.lens.is_pinhole
        if pinhole and gradient.is_cuda and gradient.dtype == means.dtype == torch.float32:
            gpu = triton_module("raygauss_ns.gaussians.gpu", "density control on a GPU")
            scale = unit * images * (1.0 if view is None else view.fraction)
            found = gpu.observed(gradient, scale, means, view, unit if self.schedule.distance_weighted else 0.0)
            self._add(found, weight)
            return
        norms = torch.linalg.vector_norm(gradient, dim=-1) * (unit * images)
        seen = norms > 0
        if view is not None:
            norms *= view.fraction
            if self.schedule.distance_weighted:
                norms *= (view.distances(means) / unit).clamp_min(1.0)
            if view.fraction < 1:
                seen &= ~view.misses(means)
        self._add(torch.stack([norms, seen.to(norms)]), weight)

    def _add(self, found: Tensor, weight: float) -> None:
        """Add what an image shows [2, N]: weighted gradients, and whether each Gaussian was seen."""
        if weight != 1:
            found[1] *= weight
        self._observed = found if self._observed is None else self._observed + found

    @torch.no_grad()
    def add_observed(self, processes: Processes) -> None:
        """Add to the statistic what was observed since the last call, on all ranks.

        The sum over the images of a step is computed first, so that rounding does not depend on which rank saw which
        image.

        Args:
            processes: the ranks that train together; all of them must call this.
        """
        found, self._observed = self._observed, None
        if processes.size > 1:
            found = processes.sum(self.gradient_sum.new_zeros(2, len(self.gradient_sum)) if found is None else found)
        if found is not None:
            torch._foreach_add_([self.gradient_sum, self.times_seen], list(found.unbind()))  # one launch

    @torch.no_grad()
    def densify(self, params: nn.ParameterDict, optimizers: dict[str, Optimizer], extent: float, seed: int) -> int:
        """Clone and split the Gaussians with a high statistic, and reset the statistic.

        Args:
            params: the parameters of `GaussianCloud`; replaced by larger ones.
            optimizers: an optimiser for each of them; new Gaussians start without momentum.
            extent: camera extent (scene units).
            seed: of the random positions of split Gaussians; the state of the global generators is preserved.

        Returns:
            The number of Gaussians added.
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
    def relocate(
        self,
        params: nn.ParameterDict,
        optimizers: dict[str, Optimizer],
        unit: float,
        step: int,
        seed: int,
        limit: float = math.inf,
    ) -> int:
        """Remove the Gaussians that show nothing, divide others where the statistic is high, and reset it.

        Args:
            params: the parameters of `GaussianCloud`; replaced by others.
            optimizers: an optimiser for each of them; divided Gaussians start without momentum.
            unit: scene scale u (scene units).
            step: the training step.
            seed: of the draw; the state of the global generators is preserved.
            limit: number of Gaussians beyond which the set does not grow for the present.

        Returns:
            The number of Gaussians added, all in all. If all show nothing, none is touched.
        """
        before, state = len(self.gradient_sum), {"statistic": self.statistic}
        faint = optical_depths(params["densities"] / unit, params["scales"]) < -math.log1p(-FAINT)
        left = before - int(faint.sum())
        if left == 0:
            return 0
        if left < before:
            remove(params, optimizers, state, faint)
        wanted = min(max(self.schedule.grown(before, step, limit) - left, 0), left)
        if wanted > 0:
            divide(params, optimizers, weighted_choice(state["statistic"], wanted, seed))
        self._restart(len(params["means"]))
        self.log_scale_floor = self.log_scale_floor.new_zeros(0)
        return len(params["means"]) - before

    @torch.no_grad()
    def prune(self, params: nn.ParameterDict, optimizers: dict[str, Optimizer]) -> int:
        """Remove the low-density Gaussians: without a support they would never get a gradient again.

        Args:
            params: the parameters of `GaussianCloud`; replaced by smaller ones.
            optimizers: an optimiser for each of them; their state is reduced as well.

        Returns:
            The number of Gaussians left. If 0, nothing was removed: an optimiser cannot hold empty parameters.
        """
        low_density = ~(params["densities"] > self.density_threshold)
        left = len(low_density) - int(low_density.sum())
        if 0 < left < len(low_density):
            state = {"gradient_sum": self.gradient_sum, "times_seen": self.times_seen}
            remove(params, optimizers, state, low_density)
            self.gradient_sum, self.times_seen = state["gradient_sum"], state["times_seen"]
            self.log_scale_floor = self.log_scale_floor.new_zeros(0)
        return left

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Reorder the statistic along with the Gaussians.

        Args:
            order: [N] int64, the previous index of each Gaussian.
        """
        for values in (self.gradient_sum, self.times_seen, self.log_scale_floor):
            if len(values) > 0:  # the bounds on the scales are empty right after a round
                values.copy_(values[order])

    def check_number(self, gaussians: int) -> None:
        """See that a loaded state speaks of so many Gaussians.

        Raises:
            UserError: it says of another number how often they were seen.
        """
        if len(self.gradient_sum) != gaussians:
            raise UserError(
                f"The checkpoint has {gaussians} Gaussians, and density control of {len(self.gradient_sum)}: "
                "it was altered."
            )

    @property
    def statistic(self) -> Tensor:
        """[N] mean of |dL/dmu| u over the steps that saw each Gaussian (in the unit of the loss)."""
        return self.gradient_sum / self.times_seen.clamp_min(1)

    def is_due(self, step: int) -> bool:
        """Whether a densification round follows this step."""
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
        if floor is not None and stored is not None:
            # None yet, or one for each Gaussian; where it is neither, PyTorch says so.
            self.log_scale_floor = self.log_scale_floor.new_zeros(len(stored) if len(floor) else 0)
        super()._load_from_state_dict(state_dict, prefix, *args)
