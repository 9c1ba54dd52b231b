"""Maintenance of a set of Gaussians after each update of its parameters.

In this order:

    negative densities to 0 -> remove low-density Gaussians -> clone and split -> sort in memory -> bound the scales

The order in memory is that of a Z-order curve, as in RayGaussX (arXiv 2509.07782). Neighbours in space become
neighbours in memory, which improves the use of caches. No value changes, and training is the same except for the order
in which floats are added up and in which random numbers are assigned to split Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ns_support.concurrency.processes import Processes
from ns_support.errors import UserError
from ns_support.lenses.lens import Lens
from raygauss_ns.casting.morton import morton_codes
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.density.control import DensityControl
from raygauss_ns.gaussians.density.relocation import moments
from raygauss_ns.gaussians.projection import smallest_resolved_scale
from raygauss_ns.gaussians.schedules import Draw, step_seed

GAUSSIANS_PER_PIXEL = 2.0
"""Relocation: maximum number of Gaussians, in pixels of the largest training image at its present size. More are slow,
and have nothing to show."""
SCALE_FLOOR_EVERY = 100
"""Steps between two computations of the lower bounds on the scales, as published."""


class MaintenanceSettings(NamedTuple):
    """The intervals of the maintenance tasks.

    Attributes:
        prune_every: steps between two removals of low-density Gaussians, >= 1.
        reorder_every: steps between two sorts, >= 1; 0: never.
        limit_scales: whether a Gaussian may not become smaller than half a pixel of the camera that sees it best.
    """

    prune_every: int = 100
    reorder_every: int = 0
    limit_scales: bool = True


class Maintenance:
    """Called after each update of the parameters.

    All ranks hold the same Gaussians and change them in the same way: every quantity that decides here is either equal
    on all ranks or has been summed over them.

    Args:
        cloud: the Gaussians.
        control: when and where they are cloned and split.
        world_to_cameras: [C, 3, 4] poses of the training images; cameras look along their -z axis.
        lenses: C lenses.
        extent: camera extent (scene units).
        settings: the intervals.
    """

    def __init__(
        self,
        cloud: GaussianCloud,
        control: DensityControl,
        world_to_cameras: Tensor,
        lenses: Sequence[Lens],
        extent: float,
        settings: MaintenanceSettings,
    ) -> None:
        self.cloud, self.control, self.extent, self.settings = cloud, control, extent, settings
        self.world_to_cameras, self.lenses = world_to_cameras, lenses
        self.pixels = max((float(lens.width * lens.height) for lens in lenses), default=math.inf)
        self.processes = Processes.current()

    @torch.no_grad()
    def after_update(self, steps: range, optimizers: dict[str, Optimizer], seed: int, downscales: int = 0) -> None:
        """Do what is due.

        Args:
            steps: the training steps whose gradients were used for this update.
            optimizers: one for each kind of parameter; their states are kept consistent with the Gaussians.
            seed: of the training; determines the positions of split Gaussians.
            downscales: how often the sides of the images are halved at present, in which pixels are larger.

        Raises:
            UserError: no Gaussian is left.
        """
        self.cloud.params["densities"].clamp_(min=0.0)
        self._densify(steps, optimizers, seed, downscales)
        every = self.settings.reorder_every
        if every > 0 and any(s > 0 and s % every == 0 for s in steps):
            reorder(self.cloud.params, optimizers, self.control)
        if self.settings.limit_scales:
            self._limit_scales(any(s % SCALE_FLOOR_EVERY == 0 for s in steps), downscales)

    def _densify(self, steps: range, optimizers: dict[str, Optimizer], seed: int, downscales: int) -> None:
        params, control, step = self.cloud.params, self.control, steps[-1]
        prunes = any(s > 0 and s % self.settings.prune_every == 0 for s in steps)
        if prunes and control.prune(params, optimizers) == 0:
            raise UserError(
                f"No Gaussian is left at step {step}: all densities fell below {control.density_threshold}. "
                "Check the scene's poses and background colour, or lower --pipeline.model.density-threshold."
            )
        if any(map(control.is_due, steps)):
            self.processes.check_same({"means": params["means"]}, f"at step {step}")
            seed = step_seed(seed, step, Draw.SPLIT)
            if control.schedule.grow_until is None:
                control.densify(params, optimizers, self.extent, seed)
            else:
                limit = GAUSSIANS_PER_PIXEL * self.pixels / 4**downscales
                control.relocate(params, optimizers, self.cloud.unit, step, seed, limit)

    def _limit_scales(self, due: bool, downscales: int) -> None:
        params, control = self.cloud.params, self.control
        means, scales = params["means"], params["scales"]
        if due or len(control.log_scale_floor) == 0:
            control.log_scale_floor = smallest_resolved_scale(means, self.world_to_cameras, self.lenses).log()
        floor = control.log_scale_floor
        if downscales > 0:
            floor = floor + downscales * math.log(2.0)
        torch.maximum(scales, floor[:, None], out=scales)


@torch.no_grad()
def reorder(
    params: nn.ParameterDict, optimizers: dict[str, Optimizer], control: DensityControl | None = None
) -> Tensor:
    """Sort the Gaussians by the Morton codes of their means, in place and stably.

    The parameters stay the same tensors. Their gradients, the optimisers' moments and the densification statistic are
    reordered along with them. The order depends only on the means, so a resumed training has the same one.

    Args:
        params: the parameters of `GaussianCloud`, N rows each.
        optimizers: optimisers by the name of their parameter; some may be absent.
        control: its statistic is reordered as well.

    Returns:
        [N] int64: the previous index of each Gaussian.
    """
    means = params["means"]
    order = torch.argsort(morton_codes(means), stable=True)
    for name, parameter in params.items():
        moved = [parameter] if parameter.grad is None else [parameter, parameter.grad]
        if name in optimizers:
            moved += moments(optimizers[name], parameter)
        for tensor in moved:
            tensor.copy_(tensor[order])
    if control is not None:
        control.reorder(order)
    return order
