"""nerfstudio's pipeline for any number of processes on any device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from rich.progress import track

from ns_support.commands.loading import prepare_loading
from ns_support.commands.rendering import prepare_rendering
from ns_support.concurrency.processes import Processes
from ns_support.corrections.poses import PoseRefinementConfig
from ns_support.errors import UserError
from ns_support.help import documented
from ns_support.kernels.backend import check_gpu
from ns_support.metrics import SCORES, in_words
from ns_support.runs.saved_config import check_fields
from ns_support.terminal import say


@documented
@dataclass
class SharedPipelineConfig(VanillaPipelineConfig):
    """Configuration of a pipeline that several processes may share."""

    _target: type = field(default_factory=lambda: SharedPipeline)
    """Class to instantiate."""

    def setup(self, **kwargs: Any) -> Any:
        """Make the pipeline.

        Raises:
            UserError: the configuration lacks something, or has a word in place of a number: it was read from a
                damaged config.yml.
        """
        check_fields(self, "The run's config.yml (pipeline)")
        return super().setup(**kwargs)

    def check(self) -> None:
        """Refuse settings that can't be trained with, before any data are loaded.

        Raises:
            UserError: names the setting, its value and what it must be.
        """
        check = getattr(self.model, "check", None)
        if check is not None:
            check()


class SharedPipeline(VanillaPipeline):
    """`VanillaPipeline` without `DistributedDataParallel`, whose place `SharedTrainer` and `Processes` take.

    The model starts as process 0 has it. Losses of all processes add up: a subclass divides by `processes.size` what is
    a mean over the batch.
    """

    export_command = "ns-export pointcloud --output-dir pointcloud"
    """What `ns-train` suggests at its end, to be followed by `--load-config`."""

    def __init__(
        self,
        config: VanillaPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        check_gpu(device)
        prepare_loading()
        prepare_rendering()
        processes = Processes.current()
        if world_size != processes.size:
            raise UserError(f"{world_size} processes were asked for, but torch.distributed has {processes.size}.")
        poses = getattr(config.model, "camera_optimizer", None)
        if isinstance(poses, PoseRefinementConfig) and hasattr(config.datamanager, "fit_poses"):
            config.datamanager.fit_poses = poses.mode != "off" and poses.match_features
        # Told that it is alone, the pipeline wraps nothing, and the checkpoint looks the same whoever wrote it.
        super().__init__(config, device, test_mode, world_size=1, local_rank=0, grad_scaler=grad_scaler)
        self.processes = processes
        self.loaded_step = 0
        """Of the checkpoint that was loaded to be looked at."""
        processes.broadcast_module(self.model)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool | None = None) -> None:
        """Load a checkpoint's state, all of it: nerfstudio's own goes on with whatever fits, in silence.

        Args:
            state_dict: of the pipeline.
            strict: not used.

        Raises:
            UserError: something is missing, left over or of another size. Names some of it.
        """
        try:
            super().load_state_dict(state_dict, strict=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
            raise UserError(
                "The checkpoint does not fit this configuration. Was it written by another method, or with other "
                f"settings? {' '.join(lines)[:500]}"
            ) from error

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, Any]:
        """The scores over all evaluation images; said on the terminal where it is `ns-eval` that asks.

        If the training poses were refined, also "aligned_psnr" and so on: held-out poses err as much as the others did,
        and the scene has followed the refined ones, so that each is aligned with the scene before it is scored.
        """
        metrics: dict[str, Any] = super().get_average_eval_image_metrics(step, output_path, get_std)
        if getattr(self.model, "refinement", None) is not None:
            metrics |= self._aligned_metrics(get_std)
        if get_std:
            say(f"{in_words(metrics)}, the mean over {len(self.datamanager.eval_dataset)} images.")
        return metrics

    def _aligned_metrics(self, get_std: bool) -> dict[str, Any]:
        images = self.datamanager.fixed_indices_eval_dataloader
        self.eval()
        followed = track(images, "Aligning held-out poses", total=len(images), transient=True)
        found = [self.aligned_scores(camera, batch) for camera, batch in followed]
        self.train()
        metrics: dict[str, Any] = {}
        for name in found[0]:
            values = torch.tensor([scores[name] for scores in found])
            metrics[name] = float(values.mean())
            if get_std:
                metrics[f"{name}_std"] = float(values.std(correction=0))
        return metrics

    def aligned_scores(self, camera: Cameras, batch: dict[str, Any]) -> dict[str, float]:
        """The scores of one held-out image from a camera that was aligned with the scene, as "aligned_psnr" and so on.

        Args:
            camera: one camera of shape [1], as the data have it.
            batch: its image.
        """
        outputs = self.model.get_outputs_for_camera(self.model.aligned(camera, batch))
        scores = self.model.get_image_metrics_and_images(outputs, batch)[0]
        return {f"aligned_{name}": scores[name] for name in sorted(scores.keys() & SCORES)}

    def describe(self) -> str:
        """What is about to be trained, in a sentence."""
        return ""

    def describe_length(self, steps: int) -> str:
        """What a user should know about a training of so many steps on this machine, in a sentence; "" for nothing."""
        return ""

    @property
    def steps_averaged(self) -> int | None:
        """How many steps' gradients are averaged for the optimiser step at hand; None: as the trainer is configured."""
        return None

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """The callbacks of datamanager and model.

        Called once the checkpoint of a resumed run is loaded: from here on, all processes must hold the same.

        Raises:
            RuntimeError: the model differs between processes.
        """
        callbacks: list[TrainingCallback] = super().get_training_callbacks(attributes)
        self.processes.check_same(self.model.state_dict(), "at the start of training")
        return callbacks
