"""What happens around a training step: schedules before it, maintenance of the set of Gaussians after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer
from torch import Tensor

from ns_support.concurrency.processes import Processes
from ns_support.corrections.moving import window_blocks
from ns_support.lenses.lens import Lens, Window
from ns_support.rays import camera_extent
from ns_support.schedulers import FloatExponentialDecayConfig, refit
from raygauss_ns.cameras import posed_lenses, random_window, window_extent
from raygauss_ns.config import CPU_GAUSSIANS, GPU_GAUSSIANS, PUBLISHED_GAUSSIANS, RayGaussModelConfig
from raygauss_ns.gaussians.density.control import DensitySchedule
from raygauss_ns.gaussians.maintenance import Maintenance, MaintenanceSettings
from raygauss_ns.gaussians.schedules import Draw, step_generator, stretched

if TYPE_CHECKING:
    from raygauss_ns.model import RayGaussModel


class TrainingHooks:
    """What nerfstudio's trainer calls before and after each step of a `RayGaussModel`.

    A step renders an image, or several if the pipeline wants it. Late in training the gradients of several steps are
    averaged (`model.steps_per_update`): the trainer then steps the optimisers after the last of each group, and here
    too the Gaussians change only then, so that no gradient is lost on the way.

    Args:
        model: the model; its schedules are stretched to the length of this training.
        optimizers: one for each kind of parameter; their learning rates are fitted to the scene and that length.
        cameras: of the training images.
        trainer: whose hooks they are; None outside of one.
    """

    def __init__(
        self, model: RayGaussModel, optimizers: Optimizers, cameras: Cameras, trainer: Trainer | None = None
    ) -> None:
        self.model, self.optimizers, self.trainer = model, optimizers, trainer
        self.processes = Processes.current()
        config = model.config
        total_steps = config.schedule_steps or model.total_steps  # what a checkpoint says, if one was loaded
        if trainer is not None and trainer._start_step == 0 and config.schedule_steps == 0:
            total_steps = trainer.config.max_num_iterations
        model.stretch_schedules(total_steps)
        extent = camera_extent(cameras)
        fit_learning_rates(optimizers, extent, model.total_steps)
        settings = MaintenanceSettings(config.prune_every, config.reorder_every, config.limit_scales)
        cameras_of_images = posed_lenses(cameras, model.device)
        self.maintenance = Maintenance(model.cloud, model.density_control, *cameras_of_images, extent, settings)

    def callbacks(self) -> list[TrainingCallback]:
        """For `Model.get_training_callbacks`."""
        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.before),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.after),
        ]

    def before(self, step: int) -> None:
        """Tell the model where training stands."""
        self.model.update_to_step(step)
        self.model.before_corrected_step(step / self.model.total_steps)

    def after(self, step: int) -> None:
        """Once the optimisers have stepped: keep the set of Gaussians valid, and densify it."""
        model = self.model
        if self.trainer is not None:
            images_here = model.images_at_once // self.processes.size
            self.trainer.pipeline.datamanager.rays_per_step = model.rays_per_step * images_here
        model.windows.after_step(self.processes)
        if step <= model.density_control.schedule.last:
            model.density_control.add_observed(self.processes)
        group = model.steps_per_update
        if (step + 1) % group:
            return
        model.after_corrected_step(step, (step + 1) / model.total_steps)
        steps = range(step + 1 - group, step + 1)
        self.maintenance.after_update(steps, self.optimizers.optimizers, model.seed, model.downscales)
        for name, parameter in model.cloud.params.items():
            self.optimizers.parameters[name] = [parameter]


def drawn_window(model: RayGaussModel, lens: Lens, photo: int | None) -> tuple[Window, float]:
    """The crop that the step at hand uses of an image, and the factor on its loss.

    Args:
        model: in training.
        lens: of the image at the size that it is used at.
        photo: number of the training image; None: of none.
    """
    side = model.config.window_side(model.device.type)
    generator = step_generator(model.seed, model.image, Draw.WINDOW)
    if not model.windows.is_on or photo is None or side == 0:
        return random_window(lens, side, generator), 1.0
    return model.windows.draw(photo, 1 << model.downscales, window_extent(lens, side), generator)


def counted_pixels(
    model: RayGaussModel, outputs: dict[str, Tensor], batch: dict[str, Any], image: Tensor, mask: Tensor | None
) -> tuple[Tensor | None, Tensor | float]:
    """How much each pixel of a training step's crop counts; what remembers errors takes note of them.

    Args:
        model: in training.
        outputs: of the model: "rgb" [h, w, 3], and "window" if they are of a camera.
        batch: "image" [H, W, ...], of which that is a crop, and its number "image_idx".
        image: [h, w, 3] the crop.
        mask: [h, w, 1] of the data; None: everything counts.

    Returns:
        [h, w, 1], or None: 1 everywhere. And a factor on the loss, a scalar: the weight of the crop, times what part of
        the data's mask has not moved. The loss is a mean over the pixels that count, and those that a person leaves of
        a crop must not weigh more than before.
    """
    factor: Tensor | float = float(outputs.get("window_weight", 1.0))
    if "window" not in outputs or not (model.moving.is_on or model.windows.is_on):
        return mask, factor
    photo, window = batch["image_idx"], tuple(outputs["window"].tolist())
    errors = (outputs["rgb"].detach() - image).abs().mean(-1)
    if model.moving.is_on:
        size = (batch["image"].shape[0], batch["image"].shape[1])
        blocks = window_blocks(photo, window, size, image.device)
        counts = model.moving.weights(blocks, errors, None if mask is None else mask[..., 0])[..., None]
        left = counts if mask is None else counts * mask
        factor = factor * (left.mean() if mask is None else left.sum() / mask.sum().clamp_min(1e-12))
        mask = left
    if model.windows.is_on and model.config.window_side(model.device.type) > 0:
        place = (model.image % model.images_at_once, model.images_at_once)
        model.windows.note(photo, window, 1 << model.downscales, errors, mask, place)
    return mask, factor


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
        config, lengths = optimizers.config[name]["scheduler"], {}
        if isinstance(config, FloatExponentialDecayConfig):
            lengths = {key: stretched(getattr(config, key), total_steps) for key in ("max_steps", "warmup_steps")}
        refit(optimizer, optimizers.schedulers.get(name), learning_rate, **lengths)


def density_schedule(config: RayGaussModelConfig, total_steps: int, device_type: str) -> DensitySchedule:
    """When Gaussians are cloned and split in a training of `total_steps` on a kind of device ("cuda", "cpu")."""
    relocates = config.strategy == "relocation"
    most = CPU_GAUSSIANS if device_type != "cuda" else GPU_GAUSSIANS if relocates else PUBLISHED_GAUSSIANS
    return DensitySchedule(
        first=stretched(config.densify_from, total_steps),
        last=stretched(config.densify_until, total_steps),
        every=max(stretched(config.densify_every, total_steps), min(config.densify_least, config.densify_every)),
        threshold=config.densify_threshold,
        max_gaussians=config.max_gaussians or most,
        distance_weighted=config.densify_by_distance,
        grow_until=stretched(config.grow_until, total_steps) if relocates else None,
    )
