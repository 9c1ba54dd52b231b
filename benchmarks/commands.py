"""Every ns-* command with both methods on three scenes: its output, its time, and whether it succeeded.

    python benchmarks/commands.py SCENES --output commands.json --markdown docs/commands.md
    python benchmarks/commands.py SCENES --scenes lego_200 --methods raygauss --commands train eval    # a part of it

SCENES is the folder of the scenes. A few views of each are used, and the methods are trained for a few steps with small
settings, since the commands are tested here and not quality. A command passes if its exit code is 0, no traceback was
printed, and the files that it must write exist and are not empty; or, where an error is expected, if its exit code is 1
and it printed the expected message. A failure does not stop the others. Each command runs in a new process, with one
thread by default. With --preloaded, that process is forked from one that has imported nerfstudio, and calls the
command's entry point, which saves the start-up time.

With --resume, commands that passed according to --output are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from common.report import write_json
from ns_commands.calls import COMMANDS, METHODS, Case
from ns_commands.running import preload, run

SCENES = ("lego_200", "fox_270", "fern_504")
MORE_STEPS = {"instant-ngp-hardmine": 10}
"""Factor of --steps for a method: after 20 steps, instant-ngp has no surface yet from which a mesh could be made."""
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROFILE = re.compile(r"Printing profiling stats|[\w.]+: \d+\.\d+$|Use ctrl\+c")
"""Lines that nerfstudio prints at the end of every training."""
_BOXES = re.compile(r"[─-╿▀-▟]+")


@dataclass
class Row:
    """The result of one command with one method on one scene."""

    scene: str
    method: str
    command: str
    status: str
    seconds: float
    printed: str
    psnr: float | None = None


def few_views(scene: Path, folder: Path, train: int, test: int) -> Path:
    """Make a folder that links to a scene's files but lists fewer of its views.

    Args:
        scene: a scene in Blender's format, or in nerfstudio's with the views of each split in transforms.json.
        folder: the new folder.
        train: number of training views; the first ones are used.
        test: number of views of each other split.
    """
    folder.mkdir(parents=True)
    for path in scene.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    for path in folder.glob("transforms*.json"):
        content = json.loads(path.read_text())
        if "camera_model" in content or "fl_x" in content:
            for split, count in (("train", train), ("val", test), ("test", test)):
                content[f"{split}_filenames"] = content[f"{split}_filenames"][:count]
        else:
            content["frames"] = content["frames"][: train if path.stem.endswith("train") else test]
        path.unlink()
        path.write_text(json.dumps(content))
    return folder


def last_line(output: str, hidden: dict[str, str]) -> str:
    """The last line that contains a word, without colours and boxes, and with the paths in `hidden` replaced."""
    for path, name in hidden.items():
        output = output.replace(path, name)
    lines = [_BOXES.sub(" ", _ANSI.sub("", line)).strip() for line in re.split(r"[\n\r]", output)]
    lines = [" ".join(line.split()) for line in lines if re.search(r"[A-Za-z]{3}", line) and not _PROFILE.match(line)]
    return lines[-1][:160] if lines else ""


def row_of(name: str, case: Case, environment: dict[str, str], hidden: dict[str, str], forked: bool) -> Row:
    """Run one command and check its result."""
    command = COMMANDS[name]
    begin = time.perf_counter()
    code, output = run(command.words(case), case, environment, name == "viewer", forked)
    seconds, printed = time.perf_counter() - begin, last_line(output, hidden)
    files = command.files(case)
    row = Row(case.scene, case.method, name, "pass", round(seconds, 1), printed)
    if command.refused is not None and case.method != "raygauss":
        told = command.refused in " ".join(output.split()) and "Traceback" not in output
        row.status = "expected error" if code == 1 and told else f"failed: exit code {code}, not the expected error"
    elif code != 0 or "Traceback (most recent call last)" in output:
        row.status = "failed: took too long" if code == 124 else f"failed: exit code {code}"
    elif not files or any(not path.is_file() or path.stat().st_size == 0 for path in files):
        row.status = "failed: files are missing"
    elif name == "eval":
        row.psnr = round(json.loads((case.folder / "eval.json").read_text())["results"]["psnr"], 2)
    return row


def markdown(rows: list[Row], facts: dict[str, Any]) -> str:
    """The page docs/commands.md: a table for each scene."""
    good = sum(not row.status.startswith("failed") for row in rows)
    lines = [
        "# The commands, both methods, three scenes",
        "",
        f"`python benchmarks/commands.py SCENES` on {facts['machine']}: {good} of {len(rows)} commands passed.",
        f"{facts['train_views']} training views of each scene, {facts['test_views']} test views,",
        f"{facts['steps']} steps (hardmine: ten times as many), small settings: PSNR and times show that a",
        "command works, not how good a method is.",
        "PSNR is of the first test views, over the background of each method. Times are approximate, since the machine",
        "was busy.",
        *(["The times exclude the start-up of some 10 s per command (`--preloaded`)."] if facts["preloaded"] else []),
    ]
    for scene in dict.fromkeys(row.scene for row in rows):
        lines += [
            "",
            f"## {scene}",
            "",
            "| command | method | result | s | last line printed |",
            "|---|---|---|---|---|",
        ]
        for row in (row for row in rows if row.scene == scene):
            score = "" if row.psnr is None else f"PSNR {row.psnr:.2f} dB; "
            printed = row.printed.replace("|", "\\|").replace("`", "'")
            lines.append(f"| {row.command} | {row.method} | {row.status} | {row.seconds:.0f} | {score}`{printed}` |")
    return "\n".join(lines) + "\n"


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the scenes")
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), help="names of the scenes")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--train-views", type=int, default=12, help="training views of each scene")
    parser.add_argument("--test-views", type=int, default=2, help="test views of each scene")
    parser.add_argument("--threads", type=int, default=1, help="threads of each command")
    parser.add_argument("--timeout", type=float, default=1200.0, help="time limit of a command in seconds")
    parser.add_argument("--work", type=Path, help="folder for the runs; a temporary folder by default")
    parser.add_argument("--output", type=Path, default=Path("commands.json"), help="JSON file for the results")
    parser.add_argument("--markdown", type=Path, help="Markdown file for the tables")
    parser.add_argument("--preloaded", action="store_true", help="fork the commands from one that has the imports")
    parser.add_argument("--resume", action="store_true", help="skip what passed according to --output; needs --work")
    return parser.parse_args()


def run_all(given: argparse.Namespace, work: Path, facts: dict[str, Any], environment: dict[str, str]) -> list[Row]:
    """Run the commands with each method on each scene, and write the results after each."""
    hidden = {str(work): "WORK", str(given.data.resolve()): "SCENES", sysconfig.get_path("purelib"): "SITE"}
    hidden[str(Path(__file__).resolve().parents[1])] = "HERE"
    done: list[Row] = []
    if given.resume and given.output.is_file():
        done = [Row(**row) for row in json.loads(given.output.read_text())["rows"]]
        done = [row for row in done if not row.status.startswith("failed")]
    for scene, method in product(given.scenes, given.methods):
        data = work / "scenes" / scene
        if not data.exists():
            few_views(given.data / scene, data, given.train_views, given.test_views)
        steps = given.steps * MORE_STEPS.get(method, 1)
        case = Case(scene, method, data, work / scene / method, steps, given.timeout)
        case.folder.mkdir(parents=True, exist_ok=True)
        for name in given.commands:
            if any((row.scene, row.method, row.command) == (scene, method, name) for row in done):
                continue
            row = row_of(name, case, environment, hidden, given.preloaded)
            print(f"{row.status:24} {row.seconds:6.1f} s  {scene} {method} {name}: {row.printed}", flush=True)
            done.append(row)
            done.sort(key=lambda row: (SCENES.index(row.scene) if row.scene in SCENES else 9, row.scene))
            write_json(given.output, facts | {"rows": [asdict(row) for row in done]})
            if given.markdown is not None:
                given.markdown.write_text(markdown(done, facts))
    return done


def main() -> None:
    """Run the commands, and write the results; the exit code is 1 if one failed."""
    given = parse_options()
    threads = str(given.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "COLUMNS": "200"}
    environment |= {"PYTHONWARNINGS": "ignore"}
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "nerfstudio"))
    facts = {
        "machine": f"{platform.machine()}, {threads} of {os.cpu_count()} cores, {packages}",
        "steps": given.steps,
        "train_views": given.train_views,
        "test_views": given.test_views,
        "preloaded": given.preloaded,
    }
    if given.preloaded:
        preload(environment)
    with tempfile.TemporaryDirectory() as temporary:
        done = run_all(given, (given.work or Path(temporary)).resolve(), facts, environment)
    sys.exit(any(row.status.startswith("failed") for row in done))


if __name__ == "__main__":
    main()
