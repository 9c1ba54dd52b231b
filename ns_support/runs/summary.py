"""Messages at the start and the end of a training."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras

from ns_support.concurrency.threads import num_threads
from ns_support.data.checks import parser_name
from ns_support.runs.progress import duration
from ns_support.terminal import say, show_command

_FORMATS = {
    "blender-data": "Blender scene",
    "nerfstudio-data": "nerfstudio scene",
    "instant-ngp-data": "instant-ngp scene",
    "colmap": "COLMAP model",
}
_FRAMES = 240
"""Approximate number of frames of the suggested video, independent of the number of evaluation images."""
_NOT_AGAIN = ("--load-dir", "--load-checkpoint", "--load-step", "--load-config", "--timestamp", "--start-paused")
"""Options of `ns-train` that must not be repeated in the command that resumes a training."""


def data_facts(datamanager: Any) -> str:
    """A description of the data: format, images and their sizes, points.

    Args:
        datamanager: a nerfstudio datamanager after setup.
    """
    parser = parser_name(datamanager.config.dataparser)
    train, evaluation = datamanager.train_dataset, datamanager.eval_dataset
    facts = (
        f"{_FORMATS.get(parser, parser)}: {len(train)} images to train on and {len(evaluation)} to evaluate on, "
        f"{_sizes(train.cameras)}"
    )
    points = datamanager.train_dataparser_outputs.metadata.get("points3D_xyz")
    return facts + (f"; {len(points):,} points." if points is not None else ".")


def _sizes(cameras: Cameras) -> str:
    sizes = {tuple(size) for size in torch.cat([cameras.width, cameras.height], -1).reshape(-1, 2).tolist()}
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    largest = f"{width} x {height} pixels"
    return largest if len(sizes) == 1 else f"of {len(sizes)} sizes, up to {largest}"


def device_facts(device: torch.device | str) -> str:
    """A description of the training device."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"GPU: {torch.cuda.get_device_name(device)}."
    threads = num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}."


def say_farewell(trainer: Any, steps: int, seconds: float) -> None:
    """Print the result of a training in numbers, and the commands to use it with.

    Args:
        trainer: a `SharedTrainer` whose training has ended.
        steps: number of steps of this run.
        seconds: their duration.
    """
    progress, config = trainer.progress, trainer.config
    results = [
        *([] if progress.psnr is None else [f"{progress.psnr:.1f} dB PSNR on training images"]),
        *([] if progress.gaussians is None else [f"{progress.gaussians:,} Gaussians"]),
    ]
    done = trainer.last_step + 1
    begin = f"Stopped after step {done:,} of {progress.end:,}" if done < progress.end else "Training Finished"
    say(f"\n{begin}: {steps:,} steps in {duration(seconds)}{''.join(f'; {result}' for result in results)}.")
    show_command("saved as", str(trainer.saved or "nothing"))
    run = shlex.quote(str(config.get_base_dir() / "config.yml"))
    views = len(trainer.pipeline.datamanager.eval_dataset)
    between = max(_FRAMES // views, 1) if views else 1
    poses = "" if views > 1 else "--pose-source train "
    show_command("look at it", f"ns-viewer --load-config {run}")
    if views:
        show_command("score it", f"ns-eval --load-config {run} --output-path eval.json")
    show_command(
        "a video",
        f"ns-render interpolate --load-config {run} {poses}--interpolation-steps {between} --output-path video.mp4",
    )
    show_command("export", f"{trainer.pipeline.export_command} --load-config {run}")
    show_command("train on", resume_command(sys.argv, config))


def resume_command(words: Sequence[str], config: Any) -> str:
    """The command that resumes a training from its newest checkpoint, derived from the one that started it.

    Args:
        words: the command line of this process.
        config: the training's configuration.
    """
    folder = ["--load-dir", str(config.get_base_dir())]
    if Path(words[0]).stem not in ("ns-train", "train"):
        data = config.pipeline.datamanager.data
        words = ["ns-train", config.method_name, *(["--data", str(data)] if data else [])]
    kept: list[str] = []
    skipping = False
    for word in words[1:]:
        if word.startswith("--"):
            name, joined, _ = word.replace("_", "-").partition("=")
            skipping = name in _NOT_AGAIN and not joined
            if name in _NOT_AGAIN:
                continue
        elif skipping:
            skipping = False
            continue
        kept.append(word)
    # The training's options must come before the name of a data parser, which may be at the end of the command.
    return shlex.join(["ns-train", *kept[:1], *folder, *kept[1:]])
