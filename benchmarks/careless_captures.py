r"""Careless captures: what pose refinement, exposure correction and robust weights bring where they are needed.

    python benchmarks/careless_captures.py make poses SCENES/lego_200 FAULTY/lego_poses --degrees 0.5 --percent 0.5
    python benchmarks/careless_captures.py make exposure SCENES/fox_270 FAULTY/fox_exposure --stops 1 --balance 15
    python benchmarks/careless_captures.py make people SCENES/fox_270 FAULTY/fox_people --share 50 --area 5

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/careless_captures.py run raygauss FAULTY/lego_poses \
        --parser blender-data --steps 3000 --output careless.json --name off -- \
        --pipeline.model.camera-optimizer.mode off
    python benchmarks/careless_captures.py run raygauss FAULTY/lego_poses --parser blender-data --steps 3000 \
        --variants variants.json --output careless.json
    python benchmarks/careless_captures.py show careless.json --baseline off

`make` writes a copy of a scene whose training views have a fault; test views stay as they are, except with
`make poses --both`. The copy keeps the original's split, links to the original's files where they did not change (which
must stay where they are), and says in faults.json what was done to which view. A copy of a copy has both faults.

`run` trains and evaluates in this process, on all test views or, with --views, on some of them, spread evenly. What
follows `--` are options as `ns-train METHOD` takes them, in pairs. With --variants, a JSON file gives the options by
name, {"off": [], "SE3": ["--pipeline.model.camera-optimizer.mode", "SE3"]}, and each variant is run in turn, with
what follows `--` before its own options. A row is written after each run, and a run whose row is there is skipped.
Seconds are processor seconds of all threads: of training with what it reads and compiles (nothing, once Numba's cache
has the kernels), and of the evaluation. The peak of memory is the process's, with the variants before.

`show` prints means over the seeds, and in brackets the difference to the baseline of the same scene and method:
--baseline NAME; or --baseline SCENE/NAME for one of another scene, such as that without a fault.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from captures.copies import SceneCopy, faults_of
from captures.faults import change_exposures, disturb_poses, paste_people
from common.report import machine_facts, print_table, write_json
from common.system import peak_mebibytes
from common.training import configure, evaluate, train
from nerfstudio.configs.dataparser_configs import all_dataparsers

WHICH = ("method", "scene", "name", "seed")
"""What tells one row from another."""
SCORES = {"psnr": 2, "cc_psnr": 2, "aligned_psnr": 2, "aligned_cc_psnr": 2, "ssim": 4, "lpips": 4}
"""Scores that `show` compares with the baseline's, with their digits; a column is left out if no row has it."""


def make(given: argparse.Namespace) -> None:
    """Write a copy of a scene with a fault."""
    scene = SceneCopy(given.scene)
    if given.fault == "poses":
        fault = disturb_poses(scene, given.degrees, given.percent, given.both, given.seed)
    elif given.fault == "exposure":
        fault = change_exposures(scene, given.stops, given.balance, given.light == "linear", given.seed)
    else:
        fault = paste_people(scene, given.share, given.area, given.seed)
    scene.write(given.target, fault)
    print(f"{given.target}: {given.fault} of {len(fault['views'])} views, {fault['settings']}")


def pairs(words: list[str]) -> list[str]:
    """Options as `ns-train` takes them, as `common.training.configure` takes them: "field=value".

    Raises:
        SystemExit: an option has no value, or a value no option.
    """
    rest, options = list(words), []
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not (equals or rest):
            raise SystemExit(f"{name}: options come in pairs, --name value")
        options.append(f"{name[2:].replace('-', '_')}={value if equals else rest.pop(0)}")
    return options


def run(given: argparse.Namespace) -> None:
    """Train each variant that is not done, and write its row."""
    variants = {given.name: []} if given.variants is None else json.loads(given.variants.read_text())
    common = {"method": given.method, "scene": given.data.resolve().name, "seed": given.seed, "steps": given.steps}
    for name, words in variants.items():
        about = common | {"name": name, "parser": given.parser, "views": given.views}
        about["options"] = pairs([*given.words, *words])
        if not done(given.output, about):
            row = about | measure(given, about["options"])
            write_json(given.output, [*rows_of(given.output), row])
            print(json.dumps(row), flush=True)
            gc.collect()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows in a file; none if there is no file."""
    return json.loads(path.read_text()) if path.is_file() else []


def done(path: Path, about: dict[str, Any]) -> bool:
    """Whether a run's row is in a file.

    Raises:
        SystemExit: a row of the same name is of other settings.
    """
    for row in rows_of(path):
        if all(row[key] == about[key] for key in WHICH):
            differing = [f"{key} = {row[key]}" for key in about if row[key] != about[key]]
            if differing:
                raise SystemExit(f"{path} has a run {about['name']!r} with {', '.join(differing)}.")
            return True
    return False


def measure(given: argparse.Namespace, options: list[str]) -> dict[str, Any]:
    """Train and evaluate: seconds, scores, the scene's faults and the machine."""
    with tempfile.TemporaryDirectory() as folder:
        config = configure(given.method, given.data, given.parser, given.steps, Path(folder), options)
        config.logging.local_writer.enable = False
        if hasattr(config.pipeline.datamanager, "train_cameras_sampling_seed"):  # the order of the images has its own
            config.pipeline.datamanager.train_cameras_sampling_seed = given.seed
        begin = time.process_time()
        trainer, timings = train(config, float("inf"), given.seed)
        trained = time.process_time()
        # A signal ends a training in good order; its row would be taken for that of a whole one.
        if timings["steps"] < given.steps:
            raise SystemExit(f"Stopped after {timings['steps']} of {given.steps} steps: the run's row is not written.")
        if given.views is None:
            scores = trainer.pipeline.get_average_eval_image_metrics(trainer.step)
        else:
            scores = evaluate(trainer, given.views)
        evaluated = time.process_time()
    faults = [{key: fault[key] for key in ("fault", "seed", "settings")} for fault in faults_of(given.data)]
    return {
        "seconds": round(trained - begin, 1),
        "evaluation_seconds": round(evaluated - trained, 1),
        "steps_done": timings["steps"],
        "peak_mb": round(peak_mebibytes()),
        "scores": {name: float(value) for name, value in scores.items()},
        "faults": faults,
        "machine": machine_facts(),
    }


def show(given: argparse.Namespace) -> None:
    """Print the rows of files as a table."""
    runs = [row for path in given.files for row in rows_of(path)]
    if runs:
        print_table(compared(runs, given.baseline))


def compared(runs: list[dict[str, Any]], baseline: str | None) -> list[dict[str, Any]]:
    """Rows of the table: means over the seeds, and their differences to the baseline's.

    Args:
        runs: as `run` writes them.
        baseline: name of a variant of the same scene, or SCENE/NAME; None: no differences.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in runs:
        groups.setdefault((one["method"], one["scene"], one["steps"], one["name"]), []).append(one)
    columns = [name for name in SCORES if any(name in one["scores"] for one in runs)]
    elsewhere, _, base_name = (baseline or "").rpartition("/")
    rows = []
    for (method, scene, steps, name), found in groups.items():
        base = groups.get((method, elsewhere or scene, steps, base_name), [])
        row = {"scene": scene, "method": method, "steps": steps, "variant": name, "seeds": len(found)}
        row |= {score: _cell(score, found, [] if base is found else base) for score in columns}
        seconds = {key: mean([one[key] for one in found]) for key in ("seconds", "evaluation_seconds")}
        rows.append(row | {key: f"{value:.0f}" for key, value in seconds.items()})
    return rows


def _cell(score: str, found: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    value, other = (mean([one["scores"][score] for one in rows if score in one["scores"]]) for rows in (found, base))
    digits = SCORES[score]
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if math.isnan(other) else f" ({value - other:+.{digits}f})")


def mean(values: list[float]) -> float:
    """The mean; NaN of no values."""
    return sum(values) / len(values) if values else math.nan


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    _add_faults(commands.add_parser("make", help="write a copy of a scene with a fault").add_subparsers(required=True))
    training = commands.add_parser("run", help="train, evaluate and write rows; options of the method follow --")
    training.add_argument("method")
    training.add_argument("data", type=Path, metavar="scene")
    training.add_argument("--parser", default="nerfstudio-data", choices=sorted(all_dataparsers))
    training.add_argument("--steps", type=int, default=3000)
    training.add_argument("--views", type=int, help="test views to evaluate, spread evenly; all by default")
    training.add_argument("--seed", type=int, default=42)
    names = training.add_mutually_exclusive_group(required=True)
    names.add_argument("--name", help="of the run's row")
    names.add_argument("--variants", type=Path, help="JSON file of options by name")
    training.add_argument("--output", type=Path, default=Path("careless_captures.json"), help="JSON file of the rows")
    training.set_defaults(act=run)
    shown = commands.add_parser("show", help="print rows, and what they gain over a baseline")
    shown.add_argument("files", type=Path, nargs="+")
    shown.add_argument("--baseline", help="name of the variant to compare with, or SCENE/NAME")
    shown.set_defaults(act=show)
    return parser


def _add_faults(faults: Any) -> None:
    texts = {
        "poses": "turn and shift cameras",
        "exposure": "multiply colours by an exposure and a white balance of each image's own",
        "people": "paste blobs into some images",
    }
    for name, text in texts.items():
        fault = faults.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        fault.add_argument("scene", type=Path, help="folder with transforms_train.json or transforms.json")
        fault.add_argument("target", type=Path, help="folder to write")
        fault.add_argument("--seed", type=int, default=0, help="of the fault")
        fault.set_defaults(act=make, fault=name)
        if name == "poses":
            fault.add_argument("--degrees", type=float, default=0.5, help="angle of each camera's rotation")
            fault.add_argument("--percent", type=float, default=0.5, help="shift, of the distance to what is looked at")
            fault.add_argument("--both", action="store_true", help="test cameras too")
        elif name == "exposure":
            fault.add_argument("--stops", type=float, default=1.0, help="largest exposure compensation (EV)")
            fault.add_argument("--balance", type=float, default=15.0, help="largest change of red and blue (percent)")
            fault.add_argument("--light", choices=["linear", "srgb"], default="linear", help="values to multiply")
        else:
            fault.add_argument("--share", type=float, default=50.0, help="of the training images (percent)")
            fault.add_argument("--area", type=float, default=5.0, help="of an image (percent)")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run."""
    words = sys.argv[1:] if arguments is None else arguments
    end = words.index("--") if "--" in words else len(words)
    given = _parser().parse_args(words[:end], argparse.Namespace(words=words[end + 1 :]))
    given.act(given)


if __name__ == "__main__":
    main()
