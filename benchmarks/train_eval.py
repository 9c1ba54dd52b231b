"""Train a method and evaluate it on the test views: the quality and speed that a user of `ns-train` and `ns-eval` gets.

    python benchmarks/train_eval.py raygauss SCENE --parser blender-data --steps 2000
    python benchmarks/train_eval.py instant-ngp-hardmine-bounded SCENE --parser blender-data --minutes 10
    python benchmarks/train_eval.py nerfacto SCENE --minutes 10 --option implementation=torch --views 5

Prints a table and, with --output, writes JSON. The background is the method's own (white on Blender scenes) and the
split is the data parser's test split. LPIPS (AlexNet) is included if its weights are available. The first step, in
which the kernels are compiled, is reported separately and excluded from the steps per second.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common.report import machine_line, write_json
from common.training import chosen_views, configure, evaluate, train
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.engine.trainer import Trainer
from PIL import Image
from torchmetrics.image import lpip


class NoLPIPS(torch.nn.Module):
    """Replaces nerfacto's LPIPS if its weights are not available: nerfacto downloads them when it is built."""

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        """NaN."""
        return torch.tensor(float("nan"))


def build_nerfacto_offline() -> None:
    """Make nerfacto buildable without its LPIPS weights, with NaN for its LPIPS; nerfstudio alone would raise."""
    try:
        lpip.LearnedPerceptualImagePatchSimilarity(normalize=True)
    except OSError as error:
        print(f"LPIPS of nerfacto is omitted: {error}")
        lpip.LearnedPerceptualImagePatchSimilarity = lambda **_: NoLPIPS()


def save_pictures(trainer: Trainer, folder: Path, count: int = 4) -> None:
    """Write `count` test views, spread evenly over the split, as PNG files: ground truth beside prediction."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = trainer.pipeline
    pipeline.eval()
    for i, (camera, batch) in chosen_views(pipeline.datamanager.fixed_indices_eval_dataloader, count):
        outputs = pipeline.model.get_outputs_for_camera(camera)
        _, images = pipeline.model.get_image_metrics_and_images(outputs, batch)
        image = (images["img"].cpu().clamp(0, 1).numpy() * 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{i:03d}.png")


def main() -> None:
    """Parse the command line, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("method")
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--parser", default="nerfstudio-data", choices=sorted(all_dataparsers))
    arguments.add_argument("--steps", type=int, default=2000)
    arguments.add_argument("--minutes", type=float, default=float("inf"), help="time limit of the training")
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
            scores = evaluate(trainer, given.views)
        if given.pictures is not None:
            save_pictures(trainer, given.pictures)
    results = {"method": given.method, "data": given.data.name, "machine": machine_line()} | timings | scores
    width = max(map(len, results))
    print()
    for name, value in results.items():
        print(f"{name:{width}}  {value:.4g}" if isinstance(value, float) else f"{name:{width}}  {value}")
    write_json(given.output, results)


if __name__ == "__main__":
    main()
