"""Around a training step: schedules before it, and after it what keeps the set of Gaussians valid and growing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer
from torch.optim.lr_scheduler import LambdaLR

from ns_support.concurrency.processes import Processes
from ns_support.errors import UserError
from ns_support.schedulers import FloatExponentialDecayConfig
from raygauss_ns.cameras import camera_extent, posed_lenses
from raygauss_ns.config import CPU_GAUSSIANS, GPU_GAUSSIANS, RayGaussModelConfig
from raygauss_ns.gaussians.densification import DensitySchedule
from raygauss_ns.gaussians.ordering import reorder
from raygauss_ns.gaussians.projection import smallest_resolved_scale
from raygauss_ns.gaussians.schedules import Draw, step_seed, stretched

if TYPE_CHECKING:
    from raygauss_ns.model import RayGaussModel

_SCALE_FLOOR_EVERY = 100
"""Steps between two computations of the lower bounds on the scales, as published."""


class TrainingLoop:
    """What nerfstudio's trainer calls before and after each step of a `RayGaussModel`.

    A step renders an image, or several if the pipeline wants it. Late in training the gradients of several steps are
    averaged (`model.steps_per_update`): the trainer then steps the optimisers after the last of each group, and here
    too the Gaussians change only then, so that no gradient is lost on the way.

    Several processes run the same loop over the same Gaussians. All that decides here is either the same by itself or
    summed over them.

    Args:
        model: the model; its schedules are stretched to the length of this training.
        optimizers: one for each kind of parameter; their learning rates are fitted to the scene and that length.
        cameras: of the training images.
        trainer: whose loop it is; None outside of one.
    """

    def __init__(
        self, model: RayGaussModel, optimizers: Optimizers, cameras: Cameras, trainer: Trainer | None = None
    ) -> None:
        self.model, self.optimizers, self.cameras, self.trainer = model, optimizers, cameras, trainer
        self.extent = camera_extent(cameras)
        self.processes = Processes.current()
        total_steps = model.config.schedule_steps or model.total_steps  # what a checkpoint says, if one was loaded
        if trainer is not None and trainer._start_step == 0 and model.config.schedule_steps == 0:
            total_steps = trainer.config.max_num_iterations
        model.stretch_schedules(total_steps)
        fit_learning_rates(optimizers, self.extent, model.total_steps)

    def callbacks(self) -> list[TrainingCallback]:
        """For `Model.get_training_callbacks`."""
        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.before),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.after),
        ]

    def before(self, step: int) -> None:
        """Tell the model where training stands, and the trainer how many images make an optimiser step."""
        self.model.update_to_step(step)
        if self.trainer is not None:
            group = self.model.steps_per_update
            self.trainer.gradient_accumulation_steps.update(dict.fromkeys(self.model.cloud.params, group))

    def after(self, step: int) -> None:
        """Once the optimisers have stepped: valid densities, prune, clone and split, re-order, bound the scales."""
        images_here = self.model.images_at_once // self.processes.size
        if self.trainer is not None:
            self.trainer.pipeline.datamanager.rays_per_step = self.model.rays_per_step * images_here
        if self.model.images_at_once > 1 and step <= self.model.density_control.schedule.last:
            self.model.density_control.add_observed(self.processes)
        group = self.model.steps_per_update
        if (step + 1) % group:
            return
        steps = range(step + 1 - group, step + 1)
        with torch.no_grad():
            self.model.cloud.params["densities"].clamp_(min=0.0)
            self._control_density(step, steps)
            every = self.model.config.reorder_every
            if every > 0 and any(s > 0 and s % every == 0 for s in steps):
                reorder(self.model.cloud.params, self.optimizers.optimizers, self.model.density_control)
            if self.model.config.limit_scales:
                self._limit_scales(any(s % _SCALE_FLOOR_EVERY == 0 for s in steps))

    def _control_density(self, step: int, steps: range) -> None:
        params, control, config = self.model.cloud.params, self.model.density_control, self.model.config
        optimizers = self.optimizers.optimizers
        prunes = any(s > 0 and s % config.prune_every == 0 for s in steps)
        if prunes and control.prune(params, optimizers) == 0:
            raise UserError(
                f"No Gaussian is left at step {step}: all densities fell below {config.density_threshold}. "
                "Check the scene's poses and background colour, or lower --pipeline.model.density-threshold."
            )
        if any(map(control.is_due, steps)):
            self.processes.check_same({"means": params["means"]}, f"at step {step}")
            control.densify(params, optimizers, self.extent, step_seed(self.model.seed, step, Draw.SPLIT))
        for name, parameter in params.items():
            self.optimizers.parameters[name] = [parameter]

    def _limit_scales(self, due: bool) -> None:
        params, control = self.model.cloud.params, self.model.density_control
        means, scales = params["means"], params["scales"]
        if due or len(control.log_scale_floor) == 0:
            floor = smallest_resolved_scale(means, *posed_lenses(self.cameras, means.device))
            control.log_scale_floor = floor.log()
        torch.maximum(scales, control.log_scale_floor[:, None], out=scales)


def fit_learning_rates(optimizers: Optimizers, extent: float, total_steps: int) -> None:
    """Stretch the learning rates' decay to the training's length, and make that of the means relative to the extent.

    Computed from the configuration and not from the current values, so that calling it again, or after a resume,
    changes nothing. Schedulers other than `FloatExponentialDecayConfig` keep the length they were given.

    Args:
        optimizers: an optimiser, and perhaps a scheduler, for each kind of parameter.
        extent: camera extent (scene units).
        total_steps: length of the training.
    """
    for name, optimizer in optimizers.optimizers.items():
        learning_rate = optimizers.config[name]["optimizer"].lr * (extent if name == "means" else 1.0)
        scheduler, config = optimizers.schedulers.get(name), optimizers.config[name]["scheduler"]
        factor = 1.0
        if isinstance(scheduler, LambdaLR):
            if isinstance(config, FloatExponentialDecayConfig):
                lengths = {key: stretched(getattr(config, key), total_steps) for key in ("max_steps", "warmup_steps")}
                scheduler.lr_lambdas = [partial(function, **lengths) for function in scheduler.lr_lambdas]
            scheduler.base_lrs = [learning_rate] * len(scheduler.base_lrs)
            factor = scheduler.lr_lambdas[0](scheduler.last_epoch)
        for group in optimizer.param_groups:
            group["initial_lr"] = learning_rate
            group["lr"] = learning_rate * factor


def density_schedule(config: RayGaussModelConfig, total_steps: int, device_type: str) -> DensitySchedule:
    """When Gaussians are cloned and split in a training of `total_steps` on a kind of device ("cuda", "cpu")."""
    return DensitySchedule(
        first=stretched(config.densify_from, total_steps),
        last=stretched(config.densify_until, total_steps),
        every=max(stretched(config.densify_every, total_steps), min(config.densify_least, config.densify_every)),
        threshold=config.densify_threshold,
        max_gaussians=config.max_gaussians or (GPU_GAUSSIANS if device_type == "cuda" else CPU_GAUSSIANS),
        distance_weighted=config.densify_by_distance,
    )
