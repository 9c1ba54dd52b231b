"""Everything that is to be measured once a GPU is at hand, step by step, each within a time of its own.

    python benchmarks/gpu_day.py tests
    python benchmarks/gpu_day.py kernels --geometry outputs/gpu_day/geometry.npz
    python benchmarks/gpu_day.py parts --data data/blender/lego
    python benchmarks/gpu_day.py mining --data data/blender/lego
    python benchmarks/gpu_day.py train --data data/blender/lego
    python benchmarks/gpu_day.py viewer
    python benchmarks/gpu_day.py geometry --checkpoint outputs/.../step-000029999.ckpt

Each step writes outputs/gpu_day/STEP.json after every row, so that whatever ends it early loses nothing. With
--device cpu --small each runs in seconds on a CPU. docs/gpu_day.md says what to bring, and in what order to go.

    tests      tests/gpu, file by file, the smallest first
    kernels    the caster with slabs of 4 and 8 samples, on shells and on a trained scene; the hash
               encoding
    parts      the parts of a training step of both methods, each waited for; and whole steps, not waited for
    mining     instant-ngp-hardmine with and without mining at equal seconds (benchmarks/mining.py)
    train      ns-train raygauss, ns-eval, and the geometry of its checkpoint as a file
    viewer     the images per second of the newest training
    geometry   the file for `kernels`, from a checkpoint
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.gpu_geometry import load_geometry, save_geometry
from common.gpu_scene import SETTINGS, image_rays, shell_scene
from common.journal import Journal
from gpu import describe_machine, measure_hash_encoding, measure_scene, measure_search

ROOT = Path(__file__).resolve().parents[1]
MINUTES = {"tests": 5.0, "kernels": 4.0, "parts": 2.0, "mining": 6.0, "train": 9.0, "viewer": 1.0, "geometry": 1.0}
"""Time of each step, unless told otherwise."""
_TEST_FILES = ["cast_on_cuda", "hash_encoding_on_cuda", "small_kernels_on_cuda", "marching_on_cuda"]
_TEST_FILES += ["search_on_cuda", "steps_on_cuda", "agreement"]


def run_tests(options: argparse.Namespace, journal: Journal) -> None:
    """A row for each file: whether its tests passed."""
    for name in _TEST_FILES:
        file = ROOT / "tests" / "gpu" / f"test_{name}.py"
        command = ["python", "-m", "pytest", "-q", "--maxfail=5", "-p", "no:cacheprovider", str(file)]
        if journal.left < 5:
            journal.add(file=file.name, status=124, said="no time was left")
            continue
        status, seconds, said = journal.run(command)
        journal.add(file=file.name, status=status, seconds=seconds, said=said.splitlines()[-1] if said else "")


def run_kernels(options: argparse.Namespace, journal: Journal) -> None:
    """A row for each scene, way to find Gaussians and slab, the cheap ones first; then the hash encoding."""
    scenes: dict[str, Callable[[], Any]] = {
        f"shell of {count}": lambda count=count: shell_scene(count, options.device)
        for count in ([500] if options.small else [20_000, 100_000, 1_000_000])
    }
    if options.geometry.is_file():
        scenes["trained"] = lambda: load_geometry(options.geometry, options.device)
    for half in (False, True) if options.device == "cuda" else (False,):
        journal.add(kernel="hash encoding", **measure_hash_encoding(options.points, half, options))
    journal.add(kernel="search", **measure_search(options.points // 16, options))
    rays = image_rays(options.side, options.device)
    for scene, make in scenes.items():
        gaussians, colors = make()
        for slab in (8, 4):
            if journal.left < 3:
                return
            options.settings = options.settings._replace(samples_per_slab=slab)
            journal.add(scene=scene, slab=slab, **measure_scene(gaussians, colors, rays, options))


def run_parts(options: argparse.Namespace, journal: Journal) -> None:
    """Milliseconds of the parts of a step; each part is waited for, so that they add up to more than a step takes."""
    from common.training import configure
    from nerfstudio.engine.callbacks import TrainingCallbackLocation as Where

    for method in ("raygauss", "instant-ngp-hardmine-bounded"):
        config = configure(method, options.data, options.parser, 30_000, options.output, options.option[method])
        config.machine.device_type = options.device
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        trainer.pipeline.train()
        trainer._last_save = float("inf")
        clock = Stopwatch(options.device)
        for step in range(options.warm_up + options.steps):
            if step == options.warm_up:
                clock.times.clear()
            whole = step >= options.warm_up + options.steps // 2  # the second half without waiting in between
            clock.waits = not whole
            with clock("whole, host"):
                for callback in trainer.callbacks:
                    callback.run_callback_at_location(step, Where.BEFORE_TRAIN_ITERATION)
                trainer.optimizers.zero_grad_all()
                with clock("forward"):
                    _, losses, _ = trainer.pipeline.get_train_loss_dict(step)
                    loss = sum(losses.values())
                with clock("backward"):
                    loss.backward()  # type: ignore[union-attr]
                with clock("optimisers"):
                    trainer.optimizers.optimizer_step_all()
                    trainer.optimizers.scheduler_step_all(step)
                with clock("callbacks"):
                    for callback in trainer.callbacks:
                        callback.run_callback_at_location(step, Where.AFTER_TRAIN_ITERATION)
            if step == options.warm_up + options.steps // 2 - 1:
                parts = clock.means()
                clock.times.clear()
                clock.wait()
                begin = time.perf_counter()
        clock.wait()
        seconds = time.perf_counter() - begin
        counted = options.steps - options.steps // 2
        journal.add(method=method, steps_per_second=counted / seconds, host_ms=clock.means()["whole, host"], **parts)


class Stopwatch:
    """Milliseconds of named parts, each waited for as long as `waits` says so."""

    def __init__(self, device: str) -> None:
        self.device, self.waits = device, True
        self.times: dict[str, list[float]] = {}
        self._begun: list[tuple[str, float]] = []

    def __call__(self, name: str) -> Stopwatch:
        """Name the part that begins."""
        self._name = name
        return self

    def __enter__(self) -> None:
        if self.waits:
            self.wait()
        self._begun.append((self._name, time.perf_counter()))

    def __exit__(self, *error: object) -> None:
        if self.waits:
            self.wait()
        name, begin = self._begun.pop()
        self.times.setdefault(name, []).append(1e3 * (time.perf_counter() - begin))

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def means(self) -> dict[str, float]:
        """Of each part."""
        return {name: sum(times) / len(times) for name, times in self.times.items()}


def run_mining(options: argparse.Namespace, journal: Journal) -> None:
    """One row; benchmarks/mining.py writes its own file, after each of its points."""
    file = options.output / "mining_points.json"
    file.unlink(missing_ok=True)
    at = ["2"] if options.small else ["10", "25", "50"]
    command = ["python", str(ROOT / "benchmarks" / "mining.py"), "run", str(options.data), "--parser", options.parser]
    command += ["--variants", "baseline", "points", "--at", *at, "--output", str(file), "--device", options.device]
    command += ["--seeds", "1" if options.small else "2", "--views", "1" if options.small else "5"]
    command += ["--steps", "100" if options.small else "30000"]
    command += [f"--option={option}" for option in options.option["instant-ngp-hardmine-bounded"]]
    status, seconds, said = journal.run(command)
    journal.add(status=status, seconds=seconds, file=file.name, said=said)


def run_train(options: argparse.Namespace, journal: Journal) -> None:
    """A row for the training, one for its evaluation, one for the geometry."""
    limit = max(journal.left - options.eval_seconds, 5.0)
    command = [sys.executable, "-m", "nerfstudio.scripts.train", "raygauss", "--vis", "tensorboard"]
    command += ["--max-num-iterations", str(options.train_steps), "--output-dir", str(options.output / "runs")]
    command += ["--machine.device-type", options.device, "--steps-per-eval-image", "0"]
    for option in options.option["raygauss"]:
        name, value = option.split("=", 1)
        command += [f"--pipeline.model.{name.replace('_', '-')}", value]
    command += [options.parser, "--data", str(options.data)]
    begin, log = time.monotonic(), options.output / "train.log"
    with log.open("w") as out:
        training = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            training.wait(limit)
        except subprocess.TimeoutExpired:  # it stops after the step at hand, and saves
            training.send_signal(signal.SIGINT)
            try:
                training.wait(60)
            except subprocess.TimeoutExpired:
                training.kill()
    checkpoint = newest(options.output / "runs", "*.ckpt")
    steps = 0 if checkpoint is None else int(checkpoint.stem.split("-")[1]) + 1
    journal.add(what="train", status=training.wait(), seconds=time.monotonic() - begin, steps=steps)
    if checkpoint is None:
        return
    run, scores = checkpoint.parents[1], options.output / "scores.json"
    command = ["python", "-m", "nerfstudio.scripts.eval", "--load-config", str(run / "config.yml")]
    status, seconds, said = journal.run([*command, "--output-path", str(scores)])
    journal.add(what="eval", status=status, seconds=seconds, said=said)
    journal.add(what="geometry", gaussians=save_geometry(checkpoint, options.geometry), file=str(options.geometry))


def newest(folder: Path, pattern: str) -> Path | None:
    """The file below a folder that was written last."""
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_mtime, default=None)


def run_viewer(options: argparse.Namespace, journal: Journal) -> None:
    """A row for each of some evaluation views of the newest training, as the viewer renders them."""
    from nerfstudio.utils.eval_utils import eval_setup

    config = newest(options.output / "runs", "config.yml")
    if config is None:
        raise SystemExit(f"There is no training in {options.output / 'runs'}: run the step train first.")
    pipeline = eval_setup(config, test_mode="test")[1]
    cameras = pipeline.datamanager.eval_dataset.cameras
    for i in range(min(len(cameras), options.views)):
        if journal.left < 1:
            return
        begin = time.perf_counter()
        rgb = pipeline.model.get_outputs_for_camera(cameras[i : i + 1].to(pipeline.device))["rgb"]
        rgb.cpu()  # as the viewer gets it
        seconds = time.perf_counter() - begin
        journal.add(view=i, pixels=rgb.shape[0] * rgb.shape[1], ms=1e3 * seconds, images_per_second=1 / seconds)


def run_geometry(options: argparse.Namespace, journal: Journal) -> None:
    """One row."""
    if options.checkpoint is None:
        raise SystemExit("The step geometry needs --checkpoint, a .ckpt file of raygauss.")
    journal.add(gaussians=save_geometry(options.checkpoint, options.geometry), file=str(options.geometry))


STEPS: dict[str, Callable[[argparse.Namespace, Journal], None]] = {
    "tests": run_tests,
    "kernels": run_kernels,
    "parts": run_parts,
    "mining": run_mining,
    "train": run_train,
    "viewer": run_viewer,
    "geometry": run_geometry,
}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and derive the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, which take seconds on a CPU")
    parser.add_argument("--minutes", type=float, help="time of the step; by default a few minutes")
    parser.add_argument("--data", type=Path, default=Path("data/blender/lego"), help="scene to train on")
    parser.add_argument("--parser", default="blender-data", help="its data parser")
    parser.add_argument("--checkpoint", type=Path, help="of raygauss, for the step geometry")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu_day"), help="folder of the results")
    parser.add_argument("--geometry", type=Path, help="file of a trained scene; by default in the results' folder")
    parser.add_argument("--train-steps", type=int, help="length of the training in the step train")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device: test the script with --device cpu --small")
    small = options.small
    options.backend, options.repeats, options.side = "auto", 1 if small else 20, 32 if small else 800
    options.timing = options.device, options.repeats
    options.points, options.settings = 2**10 if small else 2**18, SETTINGS._replace(step=0.02) if small else SETTINGS
    options.warm_up, options.steps, options.views = (1, 4, 1) if small else (50, 200, 50)
    options.train_steps = options.train_steps or (4 if small else 15_000)
    options.eval_seconds = 20.0 if small else 90.0
    options.geometry = options.geometry or options.output / "geometry.npz"
    options.option = {
        "raygauss": ["num_random=200", "step_size=0.02"] if small else [],
        "instant-ngp-hardmine-bounded": ["log2_hashmap_size=10", "grid_resolution=16", "hidden_dim=16"]
        if small
        else [],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def main(arguments: list[str] | None = None) -> Journal:
    """Do one step."""
    options = parse_options(arguments)
    about = {"step": options.step, **describe_machine(options.device), "data": options.data.name}
    minutes = MINUTES[options.step] if options.minutes is None else options.minutes
    journal = Journal(options.output / f"{options.step}.json", 60 * minutes, about)
    STEPS[options.step](options, journal)
    print(f"{len(journal.rows)} rows in {journal.path}, {journal.seconds - journal.left:.0f} s.")
    return journal


if __name__ == "__main__":
    main()
