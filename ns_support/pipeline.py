"""nerfstudio's pipeline for any number of processes on any device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig

from ns_support.errors import UserError
from ns_support.processes import Processes


@dataclass
class SharedPipelineConfig(VanillaPipelineConfig):
    """Configuration of a pipeline that several processes may share."""

    _target: type = field(default_factory=lambda: SharedPipeline)
    """Class to instantiate."""


class SharedPipeline(VanillaPipeline):
    """`VanillaPipeline` without `DistributedDataParallel`, whose place `SharedTrainer` and `Processes` take.

    The model starts as process 0 has it. Losses of all processes add up: a subclass divides by `processes.size` what is
    a mean over the batch.
    """

    def __init__(
        self,
        config: VanillaPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        processes = Processes.current()
        if world_size != processes.size:
            raise UserError(f"{world_size} processes were asked for, but torch.distributed has {processes.size}.")
        # Told that it is alone, the pipeline wraps nothing, and the checkpoint looks the same whoever wrote it.
        super().__init__(config, device, test_mode, world_size=1, local_rank=0, grad_scaler=grad_scaler)
        self.processes = processes
        processes.copy_from_first(self.model)

    @property
    def steps_averaged(self) -> int:
        """How many steps' gradients make the optimiser step at hand; each step's losses are divided by it."""
        return 1

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """The callbacks of datamanager and model.

        Called once the checkpoint of a resumed run is loaded: from here on, all processes must hold the same.

        Raises:
            RuntimeError: the model differs between processes.
        """
        callbacks: list[TrainingCallback] = super().get_training_callbacks(attributes)
        self.processes.check_same(self.model.state_dict(), "at the start of training")
        return callbacks
