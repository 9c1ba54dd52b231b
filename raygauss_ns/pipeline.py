"""Which images a training step of `raygauss` sees, in one process or in several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ns_support.errors import UserError, require
from ns_support.full_images import FullImages
from ns_support.help import documented
from ns_support.pipeline import SharedPipeline, SharedPipelineConfig
from raygauss_ns.config import CPU_GAUSSIANS
from raygauss_ns.gaussians.schedules import CPU_STEPS, PAPER_STEPS

if TYPE_CHECKING:  # the methods' registration imports this module, and must not pay for the model
    from raygauss_ns.model import RayGaussModel


@documented
@dataclass
class RayGaussPipelineConfig(SharedPipelineConfig):
    """Configuration of how images become training steps."""

    _target: type = field(default_factory=lambda: RayGaussPipeline)
    """Class to instantiate."""
    images_per_batch: int = 1
    """Images whose losses are averaged in a training step, in each process, >= 1. Learning rates and schedules count
    steps, whatever the number. N processes (--machine.num-devices N) with 1 image each are one process with N."""

    def check(self) -> None:
        """Refuse settings that can't be trained with.

        Raises:
            UserError: names the setting, its value and what it must be.
        """
        super().check()
        require("--pipeline.images-per-batch", self.images_per_batch >= 1, "at least 1", self.images_per_batch)


class RayGaussPipeline(SharedPipeline):
    """One sequence of images, K = processes * images_per_batch of which make a step.

    Step s consists of the images s K, ..., s K + K - 1 of the sequence; process r of W has r, r + W, ... of them. An
    image's number in the sequence also decides its random window and background. Which process renders it changes
    nothing.

    Raises:
        UserError: `images_per_batch` is not positive, or the datamanager is not one that can divide its images.
    """

    config: RayGaussPipelineConfig
    datamanager: FullImages
    export_command = "raygauss-export splat"

    def __init__(
        self,
        config: RayGaussPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        config.check()
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        if test_mode != "inference":
            self._refuse_small_images()
        images = config.images_per_batch * self.processes.size
        self.datamanager.divide(images, self.processes.rank, self.processes.size)
        model: RayGaussModel = self.model
        model.images_at_once = images
        model.seed = self.processes.broadcast_number(model.seed % (1 << 63), model.device)

    def _refuse_small_images(self) -> None:
        from raygauss_ns.ssim.api import WINDOW  # late: takes a second to import

        data = self.datamanager.train_dataset
        sides = torch.minimum(data.cameras.width, data.cameras.height).flatten()
        if len(sides) and int(sides.min()) < WINDOW:
            smallest = int(sides.argmin())
            raise UserError(
                f"The image {data.image_filenames[smallest]} is {int(sides[smallest])} pixels on its shorter side; "
                f"training compares windows of {WINDOW} pixels. Leave it out, or give larger images."
            )

    def describe(self) -> str:
        """How many Gaussians there are and may be, and the lengths that everything else is given in."""
        model: RayGaussModel = self.model
        most = model.density_control.schedule.max_gaussians
        smaller = 1 if self.datamanager.config.resumes else 1 << model.downscales
        return (
            f"{len(model.cloud):,} Gaussians to start with, at most {most:,}; "
            f"unit {model.unit:.3g} (scene units), step {model.step_size:.3g} units."
            + (f" Images are at 1/{smaller} of their size at first." if smaller > 1 else "")
        )

    def describe_length(self, steps: int) -> str:
        """How long it takes without a GPU."""
        model: RayGaussModel = self.model
        if model.device.type != "cpu":
            return ""
        if model.config.training_window == 0 and (model.config.max_gaussians or 0) > CPU_GAUSSIANS:
            return (
                "These settings are meant for a GPU: on a CPU a step can take seconds, and the training days. "
                "`raygauss` has settings for a CPU."
            )
        if steps == CPU_STEPS:
            return f"About 15 minutes on one core; the papers' length is --max-num-iterations {PAPER_STEPS}."
        return ""

    @property
    def steps_averaged(self) -> int:
        """How many steps' gradients make the optimiser step at hand."""
        return self.model.steps_per_update

    def get_train_loss_dict(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Render this process's images of a step.

        Returns:
            Outputs of the last image; losses, of which the sum over all processes is the step's; metrics, the mean over
            this process's images.
        """
        model: RayGaussModel = self.model
        first = step * model.images_at_once + self.processes.rank
        self.datamanager.downscales = model.downscales
        outputs: dict[str, Tensor] = {}
        all_losses, all_metrics = [], []
        for i in range(self.config.images_per_batch):
            model.update_to_image(first + i * self.processes.size)
            camera, batch = self.datamanager.next_train(step)
            with model.cloud.one_image():
                outputs = model(camera)
                all_metrics.append(model.get_metrics_dict(outputs, batch))
                all_losses.append(model.get_loss_dict(outputs, batch, all_metrics[-1]))
        if model.images_at_once == 1:  # as below, without its launches
            return outputs, all_losses[0], all_metrics[0]
        count = model.images_at_once
        losses = {name: torch.stack([each[name] / count for each in all_losses]).sum() for name in all_losses[0]}
        metrics = {name: torch.stack([each[name] for each in all_metrics]).mean() for name in all_metrics[0]}
        return outputs, losses, metrics
