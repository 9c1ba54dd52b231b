"""Where the time of a training step goes: caster, colour, SSIM, optimiser, densification, data, everything else.

    python benchmarks/step.py SCENE --parser blender-data --warm-up 1000 --steps 50

Trains `raygauss` on a scene for --warm-up steps, so that the Gaussians are no longer the initial ones, and then times
the parts of further steps. "nerfstudio and PyTorch" is the rest of the trainer's iteration: autograd, rays, the loss
other than SSIM, metrics, copies. Times are wall times of this process; other load on the machine affects all parts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.report import write_json
from common.training import configure, train

from raygauss_ns.casting.cpu.autograd import CpuCast
from raygauss_ns.color.cpu import KernelColors
from raygauss_ns.ssim import api as similarity
from raygauss_ns.training import TrainingHooks


class Stopwatch:
    """Sums the time spent in functions, by label."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Replace a function of an object or a class by a timed one."""
        inner: Callable[..., Any] = getattr(owner, name)
        self.seconds.setdefault(label, 0.0)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[label] += time.perf_counter() - begin

        is_function = isinstance(owner, type) and issubclass(owner, torch.autograd.Function)
        setattr(owner, name, staticmethod(timed) if is_function else timed)


def main() -> None:
    """Parse the command line, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--parser", default="nerfstudio-data")
    arguments.add_argument("--warm-up", type=int, default=1000, help="steps before the timed ones")
    arguments.add_argument("--steps", type=int, default=50, help="timed steps")
    arguments.add_argument("--option", action="append", default=[], help="field=value of the model's configuration")
    arguments.add_argument("--output", type=Path, help="JSON file for the results")
    given = arguments.parse_args()

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        config = configure("raygauss", given.data, given.parser, given.warm_up, Path(folder), given.option)
        trainer, timings = train(config, float("inf"), seed=42)
        owners = [getattr(callback.func, "__self__", None) for callback in trainer.callbacks]
        loop = next(owner for owner in owners if isinstance(owner, TrainingHooks))
        for owner, name, label in (
            (CpuCast, "forward", "caster, forward"),
            (CpuCast, "backward", "caster, backward"),
            (KernelColors, "forward", "colour"),
            (KernelColors, "backward", "colour"),
            (similarity._KernelSimilarity, "forward", "SSIM and its gradient"),
            (trainer.optimizers, "optimizer_scaler_step_some", "optimiser"),
            (trainer.pipeline.datamanager, "next_train", "data"),
        ):
            watch.watch(owner, name, label)
        watch.seconds["densification"] = 0.0
        begin = time.perf_counter()
        for step in range(given.warm_up, given.warm_up + given.steps):
            loop.before(step)
            trainer.train_iteration(step)
            after = time.perf_counter()
            loop.after(step)
            watch.seconds["densification"] += time.perf_counter() - after
        total = time.perf_counter() - begin

    parts = watch.seconds | {"nerfstudio and PyTorch": total - sum(watch.seconds.values())}
    print(f"\n{len(trainer.pipeline.model.cloud)} Gaussians, {1e3 * total / given.steps:.1f} ms per step\n")
    for label, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"{label:24} {1e3 * seconds / given.steps:7.2f} ms  {seconds / total:6.1%}")
    milliseconds = {label: 1e3 * seconds / given.steps for label, seconds in parts.items()}
    write_json(given.output, {"milliseconds": milliseconds, "warm_up": timings})


if __name__ == "__main__":
    main()
