"""Two trainings of the same seed: with one and two threads, in one and two processes, without a break and resumed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trials.runs import METHODS, difference, models_folder, state_of

STEPS = 12
_PROGRAM = """
import sys
from pathlib import Path
import torch
from trials.runs import config_of, train
method, data, output, steps, processes, load, seed = sys.argv[1:]
changes = {"machine__num_devices": int(processes), "machine__seed": int(seed), "machine__device_type": "cpu"}
changes |= {"load_checkpoint": Path(load)} if load else {"steps_per_save": 5, "save_only_latest_checkpoint": False}
if __name__ == "__main__":
    config = config_of(method, Path(data), Path(output), int(steps), **changes)
    from nerfstudio.scripts import train as command
    train(config)
"""


def _train(
    method: str,
    data: Path,
    output: Path,
    steps: int = STEPS,
    threads: int = 1,
    processes: int = 1,
    load: str = "",
    seed: int = 0,
) -> dict[str, Any] | None:
    """A training in a command of its own; its last checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    program = output / "program.py"
    program.write_text(_PROGRAM)
    words = [str(word) for word in (method, data, output, steps, processes, load, seed)]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    with (output / "train.log").open("w") as log:
        subprocess.run([sys.executable, str(program), *words], env=environment, stdout=log, stderr=log, check=True)
    newest = sorted(models_folder(output, method).iterdir())[-1]
    return state_of(newest)


def determinism(data: Path, work: Path, count: int) -> Iterator[dict[str, Any]]:
    """The largest difference of two trainings' tensors; "bit for bit" if there is none.

    Args:
        data: a Blender scene.
        work: folder for the runs.
        count: how often each pair is trained; the largest difference counts.
    """
    for method in METHODS:
        pairs: dict[str, float] = {}
        for i in range(count):
            folder = work / f"{method}_{i}"

            def trained(name: str, folder: Path = folder, method: str = method, **how: Any) -> dict[str, Any] | None:
                return _train(method, data, folder / name, **how)

            one, two = trained("one"), trained("two_threads", threads=2)
            found = {
                "again": difference(one, trained("again")),
                "two threads, again": difference(two, trained("two_threads_again", threads=2)),
                "two threads and one": difference(two, one),
                "two processes, again": difference(
                    trained("two_processes", processes=2), trained("two_processes_again", processes=2)
                ),
                "another seed": difference(one, trained("seed", seed=1)),
            }
            # Of the same training: one of half the length has other schedules.
            middle = sorted(models_folder(folder / "one", method).iterdir())[0]
            left = STEPS - 1 - int(middle.stem.split("-")[1])
            found["stopped and resumed"] = difference(one, trained("resumed", steps=left, load=str(middle)))
            pairs = {name: max(value, pairs.get(name, 0.0)) for name, value in found.items()}
            shutil.rmtree(folder)
        for name, value in pairs.items():
            yield {"method": method, "pair": name, "difference": f"{value:.1e}" if value else "bit for bit"}
