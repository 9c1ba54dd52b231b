"""The methods as NeRFBaselines' trainer drives them: step by step, with checkpoints that need no data to be rendered.

A checkpoint is a folder with config.yml, nerfstudio's folder of checkpoints, and `data`: the cameras that the model was
trained on. NeRFBaselines' `Method` is a protocol, which these classes follow without importing it.
"""

from __future__ import annotations

import ast
import copy
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import Pipeline
from nerfstudio.scripts.train import _set_random_seed
from nerfstudio.utils import writer
from numpy.typing import NDArray

from ns_support.commands.loading import load_finished
from ns_support.errors import UserError
from ns_support.nerfbaselines.dataset import MODELS, nerfstudio_camera, write_dataset
from ns_support.runs.saved_config import read_config
from ns_support.runs.saved_runs import MODEL_FOLDER, find_checkpoint
from ns_support.startup.device import default_device_type

_DATA = "data"
_OBJECT_BOX = 1.5
"""Half of the scene box's side for scenes of one object, as in nerfstudio's Blender parser."""


class StudioMethod:
    """A method of this package in NeRFBaselines.

    Args:
        checkpoint: folder that `save` wrote; None: a new training.
        train_dataset: NeRFBaselines' data set; may be None with a checkpoint, which is then for rendering only.
        config_overrides: fields of nerfstudio's configuration by their dotted names; also "method", its name in
            nerfstudio, and "object", whether the scene is one object around the origin (as Blender's) and not a
            capture, whose cameras nerfstudio normalises.

    Raises:
        UserError: neither a checkpoint nor a data set is given, a field does not exist, or a file can't be used.
    """

    method: ClassVar[str]
    """Name in nerfstudio."""

    def __init__(
        self,
        *,
        checkpoint: str | None = None,
        train_dataset: Mapping[str, Any] | None = None,
        config_overrides: Mapping[str, Any] | None = None,
    ) -> None:
        if checkpoint is None and train_dataset is None:
            raise UserError("A method is made from a checkpoint or from a training data set: both are None.")
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._overrides = dict(config_overrides or {})
        self._folder = tempfile.TemporaryDirectory()
        self._trainer: Any = None
        self._steps = self._loaded_steps() or 0
        self._trained = False
        config: Any = self._configuration()
        if train_dataset is not None:
            write_dataset(train_dataset, Path(self._folder.name) / _DATA)
            self._pipeline = self._set_up_training(config)
        else:
            assert self._checkpoint is not None
            self._pipeline = _set_up_rendering(config, self._checkpoint)
        self._config = config

    @classmethod
    def get_method_info(cls) -> dict[str, Any]:
        """What NeRFBaselines must know to load data."""
        return {
            "method_id": "",  # the registry knows it
            "required_features": frozenset(("color", "points3D_xyz", "points3D_rgb")),
            "supported_camera_models": MODELS,
            "supported_outputs": ("color", "depth", "accumulation"),
            "can_resume_training": True,
            "viewer_default_resolution": (128, 512),
        }

    def get_info(self) -> dict[str, Any]:
        """What NeRFBaselines must know of this model."""
        return {
            **self.get_method_info(),
            "num_iterations": self._config.max_num_iterations,
            "loaded_step": self._loaded_steps(),
            "loaded_checkpoint": None if self._checkpoint is None else str(self._checkpoint),
            "hparams": {"method": self._config.method_name, **self._overrides},
        }

    def get_train_embedding(self, index: int) -> None:
        """No image has an embedding of its own."""

    def optimize_embedding(self, dataset: Any, *, embedding: Any = None) -> dict[str, Any]:
        """Not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("these methods have no embeddings")

    def train_iteration(self, step: int) -> dict[str, float]:
        """Train one step and return its metrics.

        Args:
            step: number of the step, from 0.

        Raises:
            UserError: the model was loaded without a data set.
        """
        if self._trainer is None:
            raise UserError("A model that was loaded without a data set can't be trained: give train_dataset.")
        trainer, pipeline = self._trainer, self._pipeline
        with trainer.train_lock:
            pipeline.train()
            for callback in trainer.callbacks:
                callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
            loss, losses, metrics = trainer.train_iteration(step)
            for callback in trainer.callbacks:
                callback.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        writer.EVENT_STORAGE.clear()  # nobody writes it out: NeRFBaselines logs what is returned
        self._steps, self._trained = step + 1, True
        return {"loss": float(loss), **{name: float(value) for name, value in {**losses, **metrics}.items()}}

    @torch.no_grad()
    def render(self, camera: Any, *, options: Any = None) -> dict[str, NDArray[np.float32]]:
        """Render an image.

        Args:
            camera: one camera of NeRFBaselines.
            options: not used: all outputs are rendered.

        Returns:
            "color" [H, W, 3], "depth" [H, W] (scene units of the data), "accumulation" [H, W], float32.
        """
        parsed = self._pipeline.datamanager.train_dataparser_outputs
        scale = float(parsed.dataparser_scale)
        self._pipeline.eval()
        made = nerfstudio_camera(camera.item(), parsed.dataparser_transform, scale).to(self._pipeline.device)
        outputs = self._pipeline.model.get_outputs_for_camera(made)
        return {
            "color": outputs["rgb"].float().cpu().numpy(),
            "depth": (outputs["depth"][..., 0] / scale).float().cpu().numpy(),
            "accumulation": outputs["accumulation"][..., 0].float().cpu().numpy(),
        }

    def save(self, path: str) -> None:
        """Write a checkpoint; one that was loaded and not trained since is copied.

        Args:
            path: folder, made if necessary.
        """
        folder = Path(path)
        if not self._trained and self._checkpoint is not None:
            shutil.copytree(self._checkpoint, folder, dirs_exist_ok=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        trainer = self._trainer
        trainer.checkpoint_dir = folder / MODEL_FOLDER
        trainer.saved, before = None, trainer.training_state
        trainer.training_state = "completed"  # which saves now, even if gradients are being averaged
        try:
            trainer.save_checkpoint(max(self._steps - 1, 0))
        finally:
            trainer.training_state = before
        shutil.copyfile(Path(trainer.base_dir) / "config.yml", folder / "config.yml")
        shutil.copytree(Path(self._folder.name) / _DATA, folder / _DATA, dirs_exist_ok=True)

    def close(self) -> None:
        """Remove the temporary files."""
        self._folder.cleanup()

    def _loaded_steps(self) -> int | None:
        """Steps of the checkpoint that was loaded."""
        if self._checkpoint is None:
            return None
        return int(find_checkpoint(self._checkpoint).stem.split("-")[1]) + 1

    def _configuration(self) -> Any:
        if self._checkpoint is not None:
            return read_config(self._checkpoint / "config.yml")
        from nerfstudio.configs.method_configs import all_methods  # late: imports every installed method

        fields = dict(self._overrides)
        config: Any = copy.deepcopy(all_methods[fields.pop("method", self.method)])
        config.pipeline.datamanager.dataparser = _parser(_value(fields.pop("object", False)))
        config.vis, config.logging.local_writer.enable = "tensorboard", False
        config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
        config.machine.device_type = default_device_type()
        for name, value in fields.items():
            _set(config, name, _value(value))
        return config

    def _set_up_training(self, config: Any) -> Pipeline:
        folder = Path(self._folder.name)
        config.data = config.pipeline.datamanager.data = folder / _DATA
        config.output_dir, config.experiment_name, config.timestamp = folder / "runs", "nerfbaselines", "run"
        config.minutes_per_save, config.steps_per_save = 1e9, 10**9  # NeRFBaselines decides when to save
        config.load_dir = None if self._checkpoint is None else self._checkpoint / MODEL_FOLDER
        _set_random_seed(config.machine.seed)
        config.save_config()
        self._trainer = config.setup(local_rank=0, world_size=1)
        opened = len(writer.EVENT_WRITERS)
        self._trainer.setup(test_mode="val")
        _close_writers(opened)
        pipeline: Pipeline = self._trainer.pipeline
        return pipeline


class RayGauss(StudioMethod):
    """`raygauss`."""

    method = "raygauss"


class InstantNGPHardMine(StudioMethod):
    """`instant-ngp-hardmine`."""

    method = "instant-ngp-hardmine"


def _set_up_rendering(config: Any, checkpoint: Path) -> Pipeline:
    """A pipeline with a checkpoint, without images: the cameras are saved in it."""
    config.data = config.pipeline.datamanager.data = checkpoint / _DATA
    config.load_dir = checkpoint / MODEL_FOLDER
    pipeline: Any = config.pipeline.setup(device=torch.device(default_device_type()), test_mode="inference")
    pipeline.eval()
    load_finished(config, pipeline)
    return pipeline


def _close_writers(first: int) -> None:
    """Close and forget nerfstudio's TensorBoard logs from number `first` on.

    Without a viewer, nerfstudio's trainer always opens a log. Here it would stay empty, and its thread would hold a
    file in the temporary folder.
    """
    for opened in writer.EVENT_WRITERS[first:]:
        opened.tb_writer.close()
    del writer.EVENT_WRITERS[first:]


def _parser(is_object: bool) -> NerfstudioDataParserConfig:
    """All images are for training: NeRFBaselines keeps the test images to itself."""
    parser = NerfstudioDataParserConfig(eval_mode="all", downscale_factor=1)
    if is_object:
        parser.orientation_method, parser.center_method, parser.auto_scale_poses = "none", "none", False
        parser.scene_scale = _OBJECT_BOX
    return parser


def _value(text: Any) -> Any:
    """A value from the command line, where everything is text."""
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _set(config: Any, path: str, value: Any) -> None:
    """Set a field that exists, of configurations and dictionaries within one another."""
    *parents, last = path.split(".")
    for name in [*parents, last]:
        inner = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        known = name in config if isinstance(config, dict) else hasattr(config, name)
        if not known:
            raise UserError(f"--set {path}={value}: there is no field {name}.")
        if name is last:
            break
        config = inner
    if isinstance(config, dict):
        config[last] = value
    else:
        setattr(config, last, value)
