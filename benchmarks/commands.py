"""Every ns-* command with both methods on three scenes: what it printed, how long it took, and whether it did its work.

    python benchmarks/commands.py SCENES --output commands.json --markdown docs/commands.md
    python benchmarks/commands.py SCENES --scenes lego_200 --methods raygauss --commands train eval    # a part of it

SCENES is a folder that holds the scenes by name. Each is taken with a few of its views and trained for a few steps with
small settings: the commands are tested here, not quality. A command is green when its exit code is the wanted one, no
traceback was printed, and the files that it is there to write are there and not empty. What fails stops nothing else.
Every command runs in a process of its own, on one thread unless told otherwise. With --preloaded that process is forked
from one that has imported nerfstudio and calls the command's entry point: the same, without the start-up.

With --resume, what is green in --output already is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

METHODS: dict[str, list[str]] = {
    "raygauss": [
        *("--pipeline.model.training-window", "64", "--pipeline.model.step-size", "0.01"),
        *("--pipeline.model.num-random", "3000", "--pipeline.model.max-gaussians", "10000"),
    ],
    "instant-ngp-hardmine": [
        *("--pipeline.target-num-samples", "4096", "--pipeline.model.log2-hashmap-size", "14"),
        *("--pipeline.model.steps-per-diagonal", "200"),
    ],
}
"""Options that make a step small."""
MORE_STEPS = {"instant-ngp-hardmine": 10}
"""How many times the steps a method gets: after 20, instant-ngp is a fog without the surface that a mesh is made of."""
SCENES = ("lego_200", "fox_270", "fern_504")
RADIUS = {"lego_200": 4.0}
"""Distance of the camera path's cameras from the middle of the scene; elsewhere, where nerfstudio scales poses, 1."""
PORT = 7107
VIEWER_SECONDS = 3.0
"""How long a viewer runs before it is stopped."""
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROFILE = re.compile(r"Printing profiling stats|[\w.]+: \d+\.\d+$|Use ctrl\+c")
"""What nerfstudio prints at the end of every training."""
_BOXES = re.compile(r"[─-╿▀-▟]+")


@dataclass
class Row:
    """One command with one method on one scene."""

    scene: str
    method: str
    command: str
    status: str
    seconds: float
    printed: str
    psnr: float | None = None


@dataclass
class Case:
    """What the commands of one method on one scene share."""

    scene: str
    method: str
    data: Path
    folder: Path
    steps: int
    timeout: float

    @property
    def config(self) -> Path:
        """The trained run's config.yml."""
        return self.folder / "outputs" / "run" / self.method / "first" / "config.yml"

    @property
    def load(self) -> list[str]:
        """The option that names it."""
        return ["--load-config", str(self.config)]


@dataclass
class Command:
    """How to call a command, and how to tell that it did its work."""

    words: Callable[[Case], list[str]]
    files: Callable[[Case], list[Path]]
    """What it must have written."""
    refused: str | None = None
    """For methods other than raygauss: the sentence with which the command refuses, instead."""


def _train(case: Case, name: str, *words: str) -> list[str]:
    names = ["--experiment-name", "run", "--timestamp", name, "--output-dir", "outputs"]
    return [
        *("ns-train", case.method, "--max-num-iterations", str(case.steps), "--vis", "tensorboard"),
        *names,
        *METHODS[case.method],
        *words,
        *("--data", str(case.data)),
    ]


def _checkpoints(case: Case, name: str) -> list[Path]:
    return list((case.folder / "outputs" / "run" / case.method / name / "nerfstudio_models").glob("*.ckpt"))


def _rendered(name: str) -> Callable[[Case], list[Path]]:
    return lambda case: [path for path in (case.folder / name).rglob("*.*") if path.is_file()]


def _render(kind: str, *words: str) -> Callable[[Case], list[str]]:
    return lambda case: ["ns-render", kind, *case.load, "--output-path", kind, *words]


def _camera_path(case: Case) -> list[str]:
    """Two frames from a circle around the middle of the scene, 64 x 48 pixels."""
    radius, frames = RADIUS.get(case.scene, 1.0), []
    for angle in (0.0, 0.3):
        c, s = math.cos(angle), math.sin(angle)
        pose = [[-s, 0, c, radius * c], [c, 0, s, radius * s], [0, 1, 0, 0], [0, 0, 0, 1]]
        frames.append({"camera_to_world": [x for row in pose for x in row], "fov": 50, "aspect": 4 / 3})
    path = {"camera_type": "perspective", "render_height": 48, "render_width": 64, "fps": 2, "seconds": 1}
    (case.folder / "path.json").write_text(json.dumps(path | {"camera_path": frames}))
    return _render("camera-path", "--camera-path-filename", "path.json", "--output-format", "images")(case)


def _export(kind: str, *words: str) -> Callable[[Case], list[str]]:
    return lambda case: ["ns-export", kind, *case.load, "--output-dir", kind, *words]


def _own_export(kind: str) -> Command:
    return Command(
        lambda case: ["raygauss-export", kind, *case.load, "--output-path", f"{kind}.ply"],
        lambda case: [case.folder / f"{kind}.ply"],
        refused="only those of raygauss can be exported",
    )


_NEAREST = ("--camera-path-filename", "path.json", "--output-format", "images", "--render-nearest-camera", "True")
_TEXTURE = ("--num-pixels-per-side", "128", "--target-num-faces", "1000")
_CLOUD = ("--num-points", "10000", "--num-rays-per-batch", "8192")
COMMANDS: dict[str, Command] = {
    "train": Command(lambda case: _train(case, "first"), lambda case: [case.config, *_checkpoints(case, "first")[:1]]),
    "resume": Command(
        lambda case: _train(case, "second", "--load-dir", str(case.config.parent / "nerfstudio_models")),
        lambda case: _checkpoints(case, "second"),
    ),
    "eval": Command(
        lambda case: ["ns-eval", *case.load, "--output-path", "eval.json", "--render-output-path", "eval"],
        lambda case: [case.folder / "eval.json", *(case.folder / "eval").glob("eval_img_*.png")],
    ),
    "render camera-path": Command(_camera_path, _rendered("camera-path")),
    "render interpolate": Command(
        _render("interpolate", "--interpolation-steps", "2", "--downscale-factor", "4", "--output-format", "images"),
        _rendered("interpolate"),
    ),
    "render spiral": Command(
        _render("spiral", "--seconds", "0.2", "--downscale-factor", "4", "--output-format", "images"),
        _rendered("spiral"),
    ),
    "render nearest": Command(
        lambda case: ["ns-render", "camera-path", *case.load, "--output-path", "nearest", *_NEAREST],
        _rendered("nearest"),
    ),
    "render dataset": Command(
        _render("dataset", "--split", "test", "--rendered-output-names", "rgb", "depth"),
        _rendered("dataset"),
    ),
    "export pointcloud": Command(
        _export("pointcloud", *_CLOUD), lambda case: [case.folder / "pointcloud" / "point_cloud.ply"]
    ),
    "export tsdf": Command(
        _export("tsdf", "--resolution", "64", "--downscale-factor", "4", *_TEXTURE),
        lambda case: [case.folder / "tsdf" / name for name in ("tsdf_mesh.ply", "mesh.obj", "material_0.png")],
    ),
    "export poisson": Command(
        _export("poisson", *_CLOUD, *_TEXTURE),
        lambda case: [case.folder / "poisson" / name for name in ("poisson_mesh.ply", "mesh.obj", "material_0.png")],
    ),
    "raygauss-export raygauss": _own_export("raygauss"),
    "raygauss-export splat": _own_export("splat"),
    "viewer": Command(
        lambda case: ["ns-viewer", *case.load, "--viewer.websocket-port", str(PORT)], lambda case: [case.config]
    ),
}


PROGRAMS = ("ns-train", "ns-eval", "ns-render", "ns-export", "ns-viewer", "raygauss-export")
"""What the commands start."""


def few_views(scene: Path, folder: Path, train: int, test: int) -> Path:
    """A folder that links to a scene and names fewer of its views.

    Args:
        scene: a Blender scene, or a nerfstudio one whose transforms.json names the views of each split.
        folder: to be made.
        train: views to train on; the first ones.
        test: views of the other splits.
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
    """The last line with a word in it, without colours, boxes and folders that are none of the reader's business."""
    for path, name in hidden.items():
        output = output.replace(path, name)
    lines = [_BOXES.sub(" ", _ANSI.sub("", line)).strip() for line in re.split(r"[\n\r]", output)]
    lines = [" ".join(line.split()) for line in lines if re.search(r"[A-Za-z]{3}", line) and not _PROFILE.match(line)]
    return lines[-1][:160] if lines else ""


class Forked:
    """A command in a fork of this process; as much of `subprocess.Popen` as is used here."""

    def __init__(self, words: list[str], folder: Path, output: int) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(folder)
            code = 1
            try:
                sys.argv = words
                _entry_point(words[0])()
                code = 0
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """The exit code.

        Raises:
            TimeoutExpired: after so many seconds.
        """
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("fork", timeout)
            time.sleep(0.05)
        return code


def _entry_point(name: str) -> Callable[[], None]:
    return next(iter(entry_points(group="console_scripts", name=name))).load()


def preload(environment: dict[str, str]) -> None:
    """Import what the commands import, under their environment."""
    os.environ.update(environment)
    for name in PROGRAMS:
        _entry_point(name)


def run(words: list[str], case: Case, environment: dict[str, str], viewer: bool, forked: bool) -> tuple[int, str]:
    """Run a command in the case's folder: its exit code and what it printed.

    A viewer is asked for its page and stopped.
    """
    path = shutil.which(words[0], path=sysconfig.get_path("scripts"))
    if path is None:
        return 127, f"{words[0]} is not installed"
    log = case.folder / "log.txt"
    with log.open("w") as file:
        process: subprocess.Popen[bytes] | Forked
        # A group of its own, so that all that it starts can be stopped with it.
        if forked:
            process = Forked(words, case.folder, file.fileno())
        else:
            process = subprocess.Popen(
                [path, *words[1:]], cwd=case.folder, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        try:
            code = _watch(process, case.timeout, log) if viewer else process.wait(case.timeout)
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return code, log.read_text(errors="replace")


def _watch(process: subprocess.Popen[bytes] | Forked, timeout: float, log: Path) -> int:
    """0 once the viewer serves its page and has gone on for a while without an error."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if process.poll() is not None:
            return process.returncode or 1
        try:
            with urllib.request.urlopen(f"http://localhost:{PORT}", timeout=2) as page:
                served = b"<html" in page.read().lower()
        except OSError:  # not yet
            time.sleep(0.5)
            continue
        # The page is served from the start, the model may still be loading.
        if served and "Loaded " in log.read_text(errors="replace"):
            time.sleep(VIEWER_SECONDS)
            return 0 if process.poll() is None else process.returncode or 1
        time.sleep(0.5)
    return 124


def row_of(name: str, case: Case, environment: dict[str, str], hidden: dict[str, str], forked: bool) -> Row:
    """Run one command and judge it."""
    command = COMMANDS[name]
    begin = time.perf_counter()
    code, output = run(command.words(case), case, environment, name == "viewer", forked)
    seconds, printed = time.perf_counter() - begin, last_line(output, hidden)
    files = command.files(case)
    row = Row(case.scene, case.method, name, "green", round(seconds, 1), printed)
    if command.refused is not None and case.method != "raygauss":
        told = command.refused in " ".join(output.split()) and "Traceback" not in output
        row.status = "refused, as it should" if code == 1 and told else f"failed: exit code {code}, no such sentence"
    elif code != 0 or "Traceback (most recent call last)" in output:
        row.status = "failed: took too long" if code == 124 else f"failed: exit code {code}"
    elif not files or any(not path.is_file() or path.stat().st_size == 0 for path in files):
        row.status = "failed: files are missing"
    elif name == "eval":
        row.psnr = round(json.loads((case.folder / "eval.json").read_text())["results"]["psnr"], 2)
    return row


def markdown(rows: list[Row], facts: dict[str, Any]) -> str:
    """The page: a table for each scene."""
    good = sum(not row.status.startswith("failed") for row in rows)
    lines = [
        "# The commands, both methods, three scenes",
        "",
        f"`python benchmarks/commands.py SCENES` on {facts['machine']}: {good} of {len(rows)} did what they should.",
        f"{facts['train_views']} views of each scene to train on, {facts['test_views']} to test,",
        f"{facts['steps']} steps (hardmine: ten times as many), small settings: PSNR and times tell that a",
        "command works, not how good a method is.",
        "PSNR is of the first test views, over the background of each method. The machine had other work, so times are",
        "rough.",
        *(["Start-up, some 10 s a command, is not in the times (`--preloaded`)."] if facts["preloaded"] else []),
    ]
    for scene in dict.fromkeys(row.scene for row in rows):
        lines += ["", f"## {scene}", "", "| command | method | | s | last line printed |", "|---|---|---|---|---|"]
        for row in (row for row in rows if row.scene == scene):
            score = "" if row.psnr is None else f"PSNR {row.psnr:.2f} dB; "
            printed = row.printed.replace("|", "\\|").replace("`", "'")
            lines.append(f"| {row.command} | {row.method} | {row.status} | {row.seconds:.0f} | {score}`{printed}` |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path, help="folder of the scenes")
    arguments.add_argument("--scenes", nargs="+", default=list(SCENES))
    arguments.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--train-views", type=int, default=12)
    arguments.add_argument("--test-views", type=int, default=2)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--timeout", type=float, default=1200.0, help="seconds for one command")
    arguments.add_argument("--work", type=Path, help="where the runs are kept; else they are thrown away")
    arguments.add_argument("--output", type=Path, default=Path("commands.json"), help="JSON file for the results")
    arguments.add_argument("--markdown", type=Path, help="markdown file for the table")
    arguments.add_argument("--preloaded", action="store_true", help="fork each command from one interpreter")
    arguments.add_argument("--resume", action="store_true", help="keep what is green in --output; needs --work")
    given = arguments.parse_args()

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
        work = (given.work or Path(temporary)).resolve()
        hidden = {str(work): "WORK", str(given.data.resolve()): "SCENES", sysconfig.get_path("purelib"): "SITE"}
        hidden[str(Path(__file__).resolve().parents[1])] = "HERE"
        done: list[Row] = []
        if given.resume and given.output.is_file():
            done = [Row(**row) for row in json.loads(given.output.read_text())["rows"]]
            done = [row for row in done if not row.status.startswith("failed")]
        for scene in given.scenes:
            data = work / "scenes" / scene
            if not data.exists():
                few_views(given.data / scene, data, given.train_views, given.test_views)
            for method in given.methods:
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
                    given.output.write_text(json.dumps(facts | {"rows": [asdict(row) for row in done]}, indent=1))
                    if given.markdown is not None:
                        given.markdown.write_text(markdown(done, facts))
    sys.exit(any(row.status.startswith("failed") for row in done))


if __name__ == "__main__":
    main()
