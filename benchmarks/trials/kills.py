"""Kill trainings at random moments and during saves; then evaluate and resume. Is anything lost?"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from trials.children import Outcome, finish, run, start
from trials.runs import METHODS, config_of, difference, evaluate, models_folder, run_folder, state_of, train

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STEPS, EVERY = 24, 3


def _heavy(method: str) -> dict[str, Any]:
    """Settings of which a checkpoint takes long enough to write for a kill to come in between."""
    if method.startswith("raygauss"):
        return {"pipeline__model__num_random": 20_000}
    return {"pipeline__model__log2_hashmap_size": 17, "pipeline__model__num_levels": 8}


def _victim(case: dict[str, Any], output: Path, data: Path) -> tuple[Outcome, float]:
    """Train, and kill after some time or when a save's temporary file shows up; also the seconds until it ended."""
    method = case["method"]
    saves = _heavy(method) if case["moment"] == "save" else {}
    only = case["only_latest"]
    config = config_of(method, data, output, STEPS, steps_per_save=EVERY, save_only_latest_checkpoint=only, **saves)
    log, folder = output / "train.log", run_folder(output, method)
    begun = time.monotonic()
    child = start(lambda: train(config), log)
    if case["moment"] == "time":
        time.sleep(case["after"])
    else:
        drafts: set[str] = set()
        while len(drafts) < case["nth"] and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            names = os.listdir(folder) if folder.is_dir() else []
            drafts |= {name for name in names if name.startswith(".step") and name.endswith(".part")}
            time.sleep(2e-4)
        time.sleep(case["into"])
    with suppress(ProcessLookupError):
        os.kill(child, case["signal"])
    told = time.monotonic()
    outcome = finish(child, log, 120.0, begun)
    return outcome, time.monotonic() - told


def _afterwards(case: dict[str, Any], output: Path, data: Path, reference: dict[str, Any] | None) -> dict[str, Any]:
    """What is left of a run that was killed: which checkpoints are whole, and whether it evaluates and resumes."""
    method = case["method"]
    folder = models_folder(output, method)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    broken = [name for name in names if state_of(folder / name) is None]
    row: dict[str, Any] = {
        "checkpoints": len(names),
        "broken": len(broken),
        "evaluates": "",
        "resumes": "",
        "equal": "",
    }
    if not names:
        return row
    row["evaluates"] = run(
        lambda: evaluate(run_folder(output, method) / "config.yml", output / "eval.json"), output / "eval.log"
    ).kind
    latest = int(names[-1].split("-")[1].split(".")[0])
    if latest < STEPS - 1:
        heavy = _heavy(method) if case["moment"] == "save" else {}
        config = config_of(method, data, output, STEPS - latest - 1, load_dir=run_folder(output, method), **heavy)
        row["resumes"] = run(lambda: train(config), output / "resume.log").kind
        ended = state_of(folder / f"step-{STEPS - 1:09d}.ckpt")
        row["equal"] = difference(ended, reference) == 0.0
    row["left over"] = sum(1 for path in run_folder(output, method).iterdir() if path.name.endswith(".part"))
    return row


def kills(data: Path, work: Path, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Every third kill falls into a save, the others at a random time of the training.

    Args:
        data: a Blender scene.
        work: folder for the runs.
        count: number of kills.
        seed: of the moments.

    Yields:
        A row for each: how it ended, what was left, and whether the resumed run is bit for bit that of no kill.
    """
    rng = random.Random(seed)
    references: dict[tuple[str, str], Any] = {}
    seconds: dict[str, float] = {}
    for i in range(count):
        method, moment = METHODS[i % 2], "save" if (i // 2) % 3 == 0 else "time"
        if (method, moment) not in references:
            output = work / f"whole_{moment}_{method}"
            heavy = _heavy(method) if moment == "save" else {}
            config = config_of(method, data, output, STEPS, steps_per_save=EVERY, **heavy)
            ended = run(lambda config=config: train(config), output / "train.log", 300.0)
            references[method, moment] = state_of(models_folder(output, method) / f"step-{STEPS - 1:09d}.ckpt")
            seconds[method] = ended.seconds
        case = {
            "method": method,
            "moment": moment,
            "signal": SIGNALS[(i // 6) % 3],
            "only_latest": rng.random() < 0.5,
            "after": rng.uniform(0.1, seconds[method]),
            "nth": rng.randint(1, 5),
            "into": rng.choice((0.0, 0.0, 0.001, 0.003, 0.01, 0.03)),
        }
        output = work / f"kill_{i:03d}"
        ended, seconds_left = _victim(case, output, data)
        row = {"method": method, "moment": moment, "signal": case["signal"].name, "end": f"{ended.kind} {ended.code}"}
        row["s"] = round(seconds_left, 2)
        yield row | _afterwards(case, output, data, references[method, moment])
        shutil.rmtree(output)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method and moment: how many kills, and of how many runs what holds."""
    table = []
    for method in METHODS:
        for moment in ("save", "time"):
            some = [row for row in rows if row["method"] == method and row["moment"] == moment]
            saved = [row for row in some if row["checkpoints"]]
            resumed = [row for row in saved if row["resumes"]]
            table.append(
                {
                    "method": method,
                    "moment": moment,
                    "kills": len(some),
                    "had saved": len(saved),
                    "broken checkpoints": sum(row["broken"] for row in some),
                    "evaluate": f"{sum(row['evaluates'] == 'ok' for row in saved)} of {len(saved)}",
                    "resume": f"{sum(row['resumes'] == 'ok' for row in resumed)} of {len(resumed)}",
                    "bit for bit": f"{sum(row['equal'] for row in resumed)} of {len(resumed)}",
                    "left over": sum(row.get("left over", 0) for row in some),
                }
            )
    return table
