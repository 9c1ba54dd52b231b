"""A training step on a GPU in which no size depends on what the GPU computes: the host never waits for a number.

How many samples are visible, and how many of them are drawn, only the GPU knows. Tensors have room for somewhat more
than the step before came to, and the rows that nothing comes to have no effect. The GPU's counts go to the host by a
copy that it reads at the next step (`Later`): from them follow the number of rays and the room for their samples.

If a step has more visible samples than expected, rays at its end are left out, and do not count in its loss; the next
step has the room.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hardmine_ns.marching import Composite
from hardmine_ns.marching.lattice import RayLattices
from hardmine_ns.mining import MiningStatistics, Padded, most_drawn
from hardmine_ns.rendering.visibility import Rays, SampleCounts, Visible, render_visible
from ns_support.concurrency.processes import Processes
from ns_support.kernels.backend import triton_module
from ns_support.kernels.later import Later
from ns_support.terminal import say

if TYPE_CHECKING:
    from nerfstudio.cameras.rays import RayBundle

    from hardmine_ns.model import HardMineModel

_SLACK, _DEVIATIONS = 1.15, 6.0
"""Room for visible samples over what the step before suggests: a part of all rays', since grid and field change, and
those of so many square roots of the number of rays, since other rays are drawn."""
_FIRST = 1 << 19
"""Room of a step before which nothing is known, in samples."""


class FixedSizes:
    """What the steps of a model on a GPU know of the ones before.

    Attributes:
        kept: [R] of the latest step: 1, or 0 for rays that do not count; None: all of them do.
        refuses: whether steps are not to be taken this way, wherever they could be.
    """

    def __init__(self) -> None:
        self.kept: Tensor | None = None
        self._factors: Tensor | None = None
        self.refuses = False
        self._later = Later()
        self._report: Tensor | None = None
        self._rays, self._most = 0, 0
        self._visible_of_a_ray: float | None = None
        self._tau: float | None = None

    @property
    def undecided(self) -> bool:
        """Whether a step has been taken of which the host does not know yet what it came to."""
        return self._later.sent

    def serve(self, model: HardMineModel, origins: Tensor) -> bool:
        """Whether the step at hand can be taken this way: on a GPU, by one process, of samples as they are marched."""
        self.kept = self._factors = None
        if self.refuses or not origins.is_cuda or Processes.current().size > 1:
            return False
        plain = model.config.merge_most == 1 and not model.grid.blocks_first
        fits: bool = plain and _kernels().fits(model.field)
        return fits

    def read(self, model: HardMineModel) -> SampleCounts | None:
        """What the latest step came to, unless that has been read; brings the statistics of mining up to date."""
        found = self._later.read()
        if found is None:
            return None
        visible, searched, rows, drawn, tau, finite = found
        if self._rays:
            self._visible_of_a_ray = visible / self._rays
        self._tau = tau
        mining = model.mining
        if mining.rule == "off" or mining.rests:
            mining.statistics = MiningStatistics(int(visible), int(visible), tau)
        else:  # of the step before, whose backward pass came later
            mining.statistics = MiningStatistics(int(rows), int(drawn), tau, bool(finite))
            if finite and drawn > self._most > 0:
                say(f"More samples were drawn than there was room for, {drawn:.0f} instead of {self._most}.")
        return SampleCounts(int(searched), int(searched), int(visible))

    def render(
        self, model: HardMineModel, rays: Rays, ray_bundle: RayBundle
    ) -> tuple[Composite, Tensor | None, Tensor]:
        """Composite rays with a graph that holds the mined samples only; as `HardMineModel.render_training` does.

        Args:
            model: which serves.
            rays: R rays, with or without a gradient.
            ray_bundle: they come from, perhaps with bounds.

        Returns:
            The composite; the optical thickness of a step [cells] that was met in the cells of the occupancy grid, -1
            where nothing was, if its next update is due after this step; samples [R] that were looked up.
        """
        gpu = _kernels()
        mining, device = model.mining, rays.origins.device
        if self._report is None or self._report.device != device:
            self._report = torch.zeros(6, dtype=torch.float64, device=device)
            self._report[4].copy_(mining.tau)
        capacity = self._capacity(len(rays.origins))
        config = model.config
        limits = gpu.Limits(config.early_stop_eps, config.alpha_thre)
        observed = torch.full_like(model.grid.thickness, -1.0) if config.updates_grid(model.steps_done + 1) else None
        found = gpu.visible_of_rays(
            model.field, _lattices(model, rays, ray_bundle), model.grid, limits, capacity, self._report[:2],
            contracts=not config.disable_scene_contraction, observed=observed,
        )  # fmt: skip
        self._later.send(self._report)
        self._rays, self.kept = len(rays.origins), found.kept
        fractions = mining.min_fraction, mining.max_fraction
        self._most = most_drawn(capacity, fractions, mining.decay, self._tau)
        visible = Visible(found.samples, found.unit_positions, found.geometry, found.features)
        mining.observer = None
        if model.run.watcher(visible.unit_positions) is not None:  # while somebody looks, the GPU may be waited for
            mining.observer = model.run.watcher(visible.unit_positions[: int(found.samples.offsets[-1])])
        moves = model.to_unit if rays.origins.requires_grad or rays.directions.requires_grad else None
        padded = Padded(found.samples.offsets[-1], self._most, self._report[2:])
        return render_visible(model.field, visible, rays, mining, moves, padded), observed, found.looked_up

    def weights(self, of_rays: Tensor | None, training: bool) -> Tensor | None:
        """Factors [R] on the losses of rays, whose mean is as if those left out did not exist.

        Args:
            of_rays: [R] the factors that rays have for other reasons; None: all 1.
            training: whether they are those of the latest step.
        """
        if self.kept is None or not training:
            return of_rays
        if self._factors is None:
            self._factors = self.kept * (len(self.kept) / self.kept.sum().clamp(min=1.0))
        return self._factors if of_rays is None else self._factors * of_rays.to(self._factors)

    def _capacity(self, rays: int) -> int:
        """Room for the visible samples of a number of rays: a multiple of 2^10, so that memory can be used again."""
        wanted: float = _FIRST
        if self._visible_of_a_ray is not None:
            wanted = self._visible_of_a_ray * (_SLACK * rays + _DEVIATIONS * math.sqrt(rays)) + 1
        return math.ceil(wanted / (1 << 10)) * (1 << 10)


def _lattices(model: HardMineModel, rays: Rays, ray_bundle: RayBundle) -> RayLattices:
    """The rays as they are to be marched in training, each with a jitter of its own."""
    nears, fars = model.bounds(ray_bundle)
    starts = nears + torch.rand_like(nears) * model.step_size
    along = rays.origins.detach(), rays.directions.detach()
    return RayLattices(*along, starts, fars, model.step_size, model.config.cone_angle)


def _kernels() -> ModuleType:
    return triton_module("hardmine_ns.rendering.gpu.launch", "The search for visible samples on a GPU")
