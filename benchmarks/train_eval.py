"""Train a method and evaluate it on the test views: the quality and speed that a user of `ns-train` and `ns-eval` gets.

    python benchmarks/train_eval.py raygauss SCENE --parser blender-data --steps 2000
    python benchmarks/train_eval.py instant-ngp-hardmine-bounded SCENE --parser blender-data --minutes 10
    python benchmarks/train_eval.py nerfacto SCENE --minutes 10 --option implementation=torch --views 5

Prints a table and, with --output, writes JSON. The background is the method's own (white on Blender scenes), the
split is the data parser's test split, LPIPS (AlexNet) appears where its weights can be had. Compiling the kernels falls
into the first step, which is reported apart and not part of the steps per second.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import platform
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from PIL import Image
from torchmetrics.image import lpip

from ns_support.startup.device import default_device_type


def configure(method: str, data: Path, parser: str, steps: int, folder: Path, options: list[str]) -> TrainerConfig:
    """The method's configuration for a run without viewer and without evaluation on the way.

    Args:
        method: name in `ns-train`.
        data: the scene.
        parser: name of the data parser.
        steps: training steps.
        folder: where checkpoints go.
        options: "field=value" pairs of the model's configuration.
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
        getattr(config.pipeline.model, name)  # a field that there is
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        setattr(config.pipeline.model, name, value)
    return config


def train(
    config: TrainerConfig, minutes: float, seed: int, prepare: Callable[[Trainer], None] | None = None
) -> tuple[Trainer, dict[str, Any]]:
    """Train for the configured steps or the given minutes, whichever ends first; the trainer and its timings.

    `prepare` is called once all is set up and before the first step.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    # Only Blender's parser knows a test split apart from the validation split, which is what `ns-train` sets up.
    blender = isinstance(config.pipeline.datamanager.dataparser, BlenderDataParserConfig)
    trainer.setup(test_mode="test" if blender else "val")
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


class NoLPIPS(torch.nn.Module):
    """Stands in for nerfacto's LPIPS where its weights can't be had: nerfacto downloads them when it is built."""

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        """NaN."""
        return torch.tensor(float("nan"))


def build_nerfacto_offline() -> None:
    """Let nerfacto be built, with NaN for its LPIPS, where nerfstudio could not build it at all."""
    try:
        lpip.LearnedPerceptualImagePatchSimilarity(normalize=True)
    except OSError as error:
        print(f"LPIPS of nerfacto is left out: {error}")
        lpip.LearnedPerceptualImagePatchSimilarity = lambda **_: NoLPIPS()


def evaluate(trainer: Trainer, views: int) -> dict[str, float]:
    """Mean metrics over so many test views, spread evenly over the split."""
    pipeline = trainer.pipeline
    pipeline.eval()
    found = [
        pipeline.model.get_image_metrics_and_images(pipeline.model.get_outputs_for_camera(camera), batch)[0]
        for camera, batch in chosen_views(pipeline.datamanager.fixed_indices_eval_dataloader, views).values()
    ]
    return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}


def chosen_views(views: Any, count: int) -> dict[int, Any]:
    """So many of the views, spread evenly, by their place."""
    chosen = set(np.linspace(0, len(views) - 1, count).round().astype(int).tolist())
    return {i: view for i, view in enumerate(views) if i in chosen}


def save_pictures(trainer: Trainer, folder: Path, count: int = 4) -> None:
    """Write `count` test views, spread evenly over the split, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = trainer.pipeline
    pipeline.eval()
    for i, (camera, batch) in chosen_views(pipeline.datamanager.fixed_indices_eval_dataloader, count).items():
        outputs = pipeline.model.get_outputs_for_camera(camera)
        _, images = pipeline.model.get_image_metrics_and_images(outputs, batch)
        picture = (images["img"].cpu().clamp(0, 1).numpy() * 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i:03d}.png")


def main() -> None:
    """Parse the command line, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("method")
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--parser", default="nerfstudio-data", choices=sorted(all_dataparsers))
    arguments.add_argument("--steps", type=int, default=2000)
    arguments.add_argument("--minutes", type=float, default=float("inf"), help="stop training after this long")
    arguments.add_argument("--seed", type=int, default=42)
    arguments.add_argument("--views", type=int, help="test views to evaluate, spread evenly; all by default")
    arguments.add_argument("--option", action="append", default=[], help="field=value of the model's configuration")
    arguments.add_argument("--output", type=Path, help="JSON file for the results")
    arguments.add_argument("--pictures", type=Path, help="folder for test views, ground truth beside prediction")
    given = arguments.parse_args()

    if given.method == "nerfacto":
        build_nerfacto_offline()
    with tempfile.TemporaryDirectory() as folder:
        config = configure(given.method, given.data, given.parser, given.steps, Path(folder), given.option)
        trainer, timings = train(config, given.minutes, given.seed)
        if given.views is None:
            scores = trainer.pipeline.get_average_eval_image_metrics(trainer.step)
        else:
            scores = evaluate(trainer, given.views) | {"views": given.views}
        if given.pictures is not None:
            save_pictures(trainer, given.pictures)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    results = {"method": given.method, "data": given.data.name, "machine": machine} | timings | scores
    width = max(map(len, results))
    print()
    for name, value in results.items():
        print(f"{name:{width}}  {value:.4g}" if isinstance(value, float) else f"{name:{width}}  {value}")
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
