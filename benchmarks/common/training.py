"""Training a method without `ns-train`: its configuration, and a run with its timings."""

from __future__ import annotations

import ast
import copy
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer

from ns_support.startup.device import default_device_type


def configure(method: str, data: Path, parser: str, steps: int, folder: Path, options: list[str]) -> TrainerConfig:
    """The method's configuration for a run without a viewer and without evaluation during training.

    Args:
        method: name in `ns-train`.
        data: the scene.
        parser: name of the data parser in `ns-train`.
        steps: training steps.
        folder: output folder of the run.
        options: "field=value" pairs of the model's configuration, or of the trainer's if a dot is in the field:
            "optimizers.densities.optimizer.lr=0.2".
    """
    config = copy.deepcopy(all_methods[method])
    config.pipeline.datamanager.dataparser = copy.deepcopy(all_dataparsers[parser])
    config.pipeline.datamanager.data = data
    config.output_dir, config.experiment_name, config.timestamp = folder, "benchmark", "run"
    config.vis, config.max_num_iterations = "tensorboard", steps
    config.machine.device_type = default_device_type()
    config.mixed_precision = config.mixed_precision and config.machine.device_type == "cuda"
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    config.steps_per_save = 10**9
    config.viewer.quit_on_train_completion = True
    for option in options:
        name, text = option.split("=", 1)
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        _set(config, name.split(".") if "." in name else ["pipeline", "model", name], value)
    return config


def _set(config: Any, path: list[str], value: Any) -> None:
    """Set a field that is there, of a configuration of configurations and dictionaries."""
    *parents, last = path
    for name in parents:
        config = _get(config, name)
    _get(config, last)  # raises if there is no such field
    if isinstance(config, dict):
        config[last] = value
    else:
        setattr(config, last, value)


def _get(config: Any, name: str) -> Any:
    return config[name] if isinstance(config, dict) else getattr(config, name)


def train(
    config: TrainerConfig, minutes: float, seed: int, prepare: Callable[[Trainer], None] | None = None
) -> tuple[Trainer, dict[str, Any]]:
    """Train for the configured steps or the given minutes, whichever ends first.

    Args:
        config: as `configure` makes it.
        minutes: time limit of the training.
        seed: for the random numbers of Python, NumPy and PyTorch.
        prepare: called with the trainer after its set-up and before the first step.

    Returns:
        The trainer, and its timings: number of steps, seconds of training, of the first step, and steps per second.
    """
    writer.EVENT_WRITERS.clear()  # those of an earlier run in this process, whose folder may be gone
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()  # as `ns-train` does: in another mode, a pipeline prepares nothing that a training starts from
    # Only Blender's parser distinguishes the test split from the validation split.
    if isinstance(config.pipeline.datamanager.dataparser, BlenderDataParserConfig):
        evaluate_on_test_split(trainer.pipeline.datamanager)
    if prepare is not None:
        prepare(trainer)
    ends: list[float] = []

    def note(step: int) -> None:
        ends.append(time.perf_counter())
        if ends[-1] - begin > 60 * minutes:
            trainer.stop_training = True

    trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], note))
    begin = time.perf_counter()
    trainer.train()
    steady = (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else float("nan")
    return trainer, {
        "steps": len(ends),
        "train_seconds": ends[-1] - begin,
        "first_step_seconds": ends[0] - begin,
        "steps_per_second": steady,
    }


def evaluate_on_test_split(manager: Any) -> None:
    """Make a training's data manager evaluate on the test split instead of the validation split."""
    manager.test_split = "test"
    manager.eval_dataset = manager.create_eval_dataset()
    manager.setup_eval()


def evenly_spread(total: int, count: int) -> list[int]:
    """Indices of `count` of `total` elements, evenly spread from the first to the last; all if there are fewer."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def evaluate(trainer: Trainer, views: int | None = None) -> dict[str, float]:
    """Mean metrics over `views` test views, spread evenly over the split; None: all. "views" is their number."""
    pipeline = trainer.pipeline
    pipeline.eval()
    found = []
    for _, (camera, batch) in chosen_views(pipeline.datamanager.fixed_indices_eval_dataloader, views):
        outputs = pipeline.model.get_outputs_for_camera(camera)
        metrics = pipeline.model.get_image_metrics_and_images(outputs, batch)[0]
        if pipeline.model.refinement is not None:
            metrics |= pipeline.aligned_scores(camera, batch)
        found.append(metrics)
    means = {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}
    return means | {"views": float(len(found))}


def chosen_views(views: Any, count: int | None) -> Iterator[tuple[int, Any]]:
    """`count` of the views, spread evenly, each with its index; None: all."""
    chosen = set(evenly_spread(len(views), len(views) if count is None else count))
    yield from ((i, view) for i, view in enumerate(views) if i in chosen)
