r"""Quality against processor seconds: the scores of test views again and again while a method trains.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/time_to_quality.py run raygauss SCENE \
        --parser blender-data --steps 8000 --at 60 120 300 600 --output lego.json
    python benchmarks/time_to_quality.py show lego.json other.json --plot quality.png

Seconds are those of the process and all its threads, from its start and with imports, data and compilation, but without
the evaluations. All schedules follow --steps, so the last point of a run is what a training of that length gives; the
points before it are of a training that was not meant to end there. With --seconds a training is broken off.

At each of --at, --views of the test views (spread evenly) are scored, at the end all of them (or --last-views), and a
checkpoint and the JSON file are written: the same command takes up a training that was broken off where the last point
is. The background is the method's own, white on Blender scenes, and the split is the data parser's test split.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from common.report import machine_facts, print_table, write_json
from common.system import peak_mebibytes
from common.training import configure, evaluate, train
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer


class Plan(NamedTuple):
    """When to score what.

    Attributes:
        at: processor seconds of the points, ascending.
        limit: processor seconds after which training is broken off.
        views: test views at a point; None: all.
        last_views: test views at the end; None: all.
        output: JSON file of the points.
    """

    at: list[float]
    limit: float
    views: int | None
    last_views: int | None
    output: Path


class Record:
    """The points of a run, in a file from the first one on.

    Args:
        plan: when to score what.
        about: what the run is of; a file of another run is not continued.
    """

    def __init__(self, plan: Plan, about: dict[str, Any]) -> None:
        self.plan, self.about = plan, about
        self.points: list[dict[str, Any]] = []
        self.apart = 0.0
        """Processor seconds of this process that do not count."""
        if plan.output.is_file():
            found = json.loads(plan.output.read_text())
            if found["about"] != about:
                raise SystemExit(f"{plan.output} is of another run: {found['about']}")
            self.points = found["points"]
        self._before = self.points[-1]["seconds"] if self.points else 0.0
        self._peak_before = self.points[-1]["peak_mb"] if self.points else 0.0

    @property
    def seconds(self) -> float:
        """Processor seconds of training so far, in this process and those before it."""
        return self._before + time.process_time() - self.apart

    @property
    def done(self) -> bool:
        """Whether the run has reached its end."""
        return bool(self.points) and bool(self.points[-1]["last"])

    def measure(self, trainer: Trainer, step: int, last: bool) -> None:
        """Score test views, save a checkpoint and write the file."""
        seconds, begin = self.seconds, time.process_time()
        peak = max(peak_mebibytes(), self._peak_before)
        scores = evaluate(trainer, self.plan.last_views if last else self.plan.views)
        trainer.pipeline.train()
        count = scores.pop("gaussian_count", None)
        scores = {name: round(value, 4) for name, value in scores.items() if name in ("psnr", "ssim", "lpips")}
        point = {"step": step + 1, "seconds": round(seconds, 1), **scores, "gaussians": count}
        self.points.append(point | {"peak_mb": round(peak), "last": last})
        trainer.save_checkpoint(step)
        write_json(self.plan.output, {"about": self.about, "points": self.points})
        print(json.dumps(self.points[-1]), flush=True)
        self.apart += time.process_time() - begin

    def watch(self, trainer: Trainer) -> None:
        """Measure at each point of the plan, from the callbacks of a trainer."""
        due = [at for at in self.plan.at if at > self.seconds]

        def after(step: int) -> None:
            last = step + 1 >= trainer.config.max_num_iterations or self.seconds >= self.plan.limit
            if not last and (not due or self.seconds < due[0]):
                return
            while due and due[0] <= self.seconds:
                due.pop(0)
            self.measure(trainer, step, last)
            if last:
                trainer.stop_training = True

        trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], after))


def run(given: argparse.Namespace) -> None:
    """Train, or go on with a training, and write the points."""
    plan = Plan(sorted(given.at), given.seconds, given.views, given.last_views, given.output)
    about = {"method": given.method, "scene": given.data.name, "steps": given.steps, "seed": given.seed}
    record = Record(plan, about | {"options": given.option, "threads": machine_facts()["threads"]})
    if record.done:
        return
    folder = given.output.with_suffix("")
    config = configure(given.method, given.data, given.parser, given.steps, folder, given.option)
    checkpoints = config.get_checkpoint_dir()
    if record.points and any(checkpoints.glob("step-*.ckpt")):
        config.load_dir = checkpoints
    train(config, float("inf"), given.seed, prepare=record.watch)


def show(given: argparse.Namespace) -> None:
    """Print the points of runs as a table, and plot them."""
    runs = {path: json.loads(path.read_text()) for path in given.files}
    rows = [
        {"run": path.stem, "threads": found["about"]["threads"]} | {k: v for k, v in point.items() if k != "last"}
        for path, found in runs.items()
        for point in found["points"]
    ]
    print_table(rows)
    if given.plot is not None:
        # Late: only the plot needs it.
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 5))
        for path, found in runs.items():
            seconds = [point["seconds"] for point in found["points"]]
            axes.plot(seconds, [point["psnr"] for point in found["points"]], marker="o", label=path.stem)
        axes.set(xlabel="processor seconds", ylabel="PSNR of test views (dB)", xscale="log")
        axes.grid(True, alpha=0.3)
        axes.legend()
        figure.savefig(given.plot, dpi=120, bbox_inches="tight")


def main() -> None:
    """Parse the command line, run."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = arguments.add_subparsers(required=True)
    training = commands.add_parser("run", help="train and write the points")
    training.add_argument("method")
    training.add_argument("data", type=Path)
    training.add_argument("--parser", default="nerfstudio-data", choices=sorted(all_dataparsers))
    training.add_argument("--steps", type=int, default=8000, help="length of the training and its schedules")
    training.add_argument("--seconds", type=float, default=float("inf"), help="processor seconds to break off after")
    training.add_argument("--at", type=float, nargs="*", default=[60, 120, 300, 600, 1200, 1800, 3600])
    training.add_argument("--views", type=int, default=5, help="test views at each point")
    training.add_argument("--last-views", type=int, help="test views at the end; all by default")
    training.add_argument("--seed", type=int, default=42)
    training.add_argument("--option", action="append", default=[], help="field=value; see common.training.configure")
    training.add_argument("--output", type=Path, required=True, help="JSON file; checkpoints beside it")
    training.set_defaults(act=run)
    shown = commands.add_parser("show", help="print runs, and plot them")
    shown.add_argument("files", type=Path, nargs="+")
    shown.add_argument("--plot", type=Path, help="PNG file")
    shown.set_defaults(act=show)
    given = arguments.parse_args()
    given.act(given)


if __name__ == "__main__":
    main()
