"""Data-parallel training against one process with the same global batch: whether the results agree, and the times.

    python benchmarks/processes.py SCENES/lego_100 --parser blender-data --steps 500
    python benchmarks/processes.py SCENES/lego_100 --parser blender-data --method instant-ngp-hardmine-bounded

N processes with the method's own batch run first, then one process with N times the batch: N images per step
(`--pipeline.images-per-batch`), or N times the samples. Both are launched as `ns-train` launches its processes; N
processes share the cores that the one process has. The background is the method's own (white on Blender scenes). PSNR
is the mean over the data parser's test split, or over its first views with --views. The first step, in which kernels
are compiled or loaded, is not part of the time. Prints a table and, with --output, writes JSON. --only runs one of the
two sides. On a busy machine the two sides can thus run at the same time; then their results can be compared, but not
their times.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.report import write_json
from common.system import free_port
from common.training import configure
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import TrainerConfig
from torch.multiprocessing.spawn import spawn

from ns_support.commands.launching import run_worker

COLUMNS = {"processes": "", "threads": "", "gaussian_count": ".0f", "psnr": ".4f", "seconds": ".1f", "step_ms": ".1f"}
"""Columns of the table, and the format of each."""


def train_and_score(
    local_rank: int, world_size: int, config: TrainerConfig, global_rank: int, views: int | None = None
) -> None:
    """Train as one of several ranks; rank 0 then writes results.json beside its checkpoints."""
    seed = config.machine.seed + global_rank  # as in `ns-train`
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    trainer = config.setup(local_rank=local_rank, world_size=world_size)
    trainer.setup(test_mode="test")
    ends: list[float] = []
    note = TrainingCallback(
        [TrainingCallbackLocation.AFTER_TRAIN_ITERATION], lambda step: ends.append(time.perf_counter())
    )
    trainer.callbacks.append(note)
    trainer.train()
    if global_rank:
        return
    pipeline = trainer.pipeline
    pipeline.eval()
    scores = []
    for camera, batch in islice(pipeline.datamanager.fixed_indices_eval_dataloader, views):
        outputs = pipeline.model.get_outputs_for_camera(camera)
        scores.append(pipeline.model.get_image_metrics_and_images(outputs, batch)[0])
    seconds = ends[-1] - ends[0]
    results: dict[str, Any] = {"processes": world_size, "threads": torch.get_num_threads()}
    results |= {"seconds": seconds, "step_ms": 1e3 * seconds / (len(ends) - 1), "views": len(scores)}
    results |= {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
    (config.get_base_dir() / "results.json").write_text(json.dumps(results))


def run(given: argparse.Namespace, processes: int, batches: int) -> dict[str, Any]:
    """Results of `processes` processes, each with `batches` times the method's batch."""
    with tempfile.TemporaryDirectory() as folder:
        config = configure(given.method, given.data, given.parser, given.steps, Path(folder), given.option)
        config.logging.local_writer.enable = False
        if hasattr(config.pipeline, "images_per_batch"):
            config.pipeline.images_per_batch *= batches
        else:
            config.pipeline.target_num_samples *= batches
        config.get_base_dir().mkdir(parents=True)
        meeting = f"tcp://127.0.0.1:{free_port()}"
        device = config.machine.device_type
        extra = (partial(train_and_score, views=given.views), processes, processes, 0, meeting, config, None, device)
        spawn(run_worker, nprocs=processes, args=extra)
        return json.loads((config.get_base_dir() / "results.json").read_text())


def main() -> None:
    """Parse the command line, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--method", default="raygauss")
    arguments.add_argument("--parser", default="nerfstudio-data", choices=sorted(all_dataparsers))
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--only", choices=("several", "one"), help="one side of the comparison")
    arguments.add_argument("--views", type=int, help="test views to evaluate; all by default")
    arguments.add_argument("--option", action="append", default=[], help="field=value of the model's configuration")
    arguments.add_argument("--output", type=Path, help="JSON file for the results")
    given = arguments.parse_args()

    sides = {"several": (given.processes, 1), "one": (1, given.processes)}
    runs = {side: run(given, *how) for side, how in sides.items() if given.only in (None, side)}
    columns = {name: form for name, form in COLUMNS.items() if all(name in results for results in runs.values())}
    views = {results["views"] for results in runs.values()}
    print(f"\n{given.method}, {given.data.name}, {given.steps} steps, {views.pop()} test views")
    print(f"{platform.machine()}, torch {torch.__version__}\n")
    print("".join(f"{name:>16}" for name in columns))
    for results in runs.values():
        print("".join(f"{results[name]:>16{form}}" for name, form in columns.items()))
    if given.only is None:
        several, one = runs["several"], runs["one"]
        ratio = one["seconds"] / several["seconds"]
        print(f"\nPSNR differs by {abs(several['psnr'] - one['psnr']):.4f} dB; one takes {ratio:.2f} times as long")
    write_json(given.output, runs)


if __name__ == "__main__":
    main()
