r"""From photographs without poses to scores: seconds of each step, and PSNR on photographs that were not trained on.

    python benchmarks/from_photographs.py SCENES/fox_540 WORK
    python benchmarks/from_photographs.py SCENES/fox_540 WORK --steps 4000 --method instant-ngp-hardmine
    python benchmarks/from_photographs.py SCENES/fox_540 WORK --video

SCENE is a folder in nerfstudio's format. Only its images are taken, all of them, and the names of those that are held
out; its poses are not. With --video they become a video of two frames a second first, which has a split of its own, as
names of frames say nothing of the photographs. Poses are found by `raygauss-photos`, and `ns-train` and `ns-eval` are
run as users run them. What is in WORK already, poses or a run, is not made again.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import imageio_ffmpeg
from common.report import machine_line, write_json

from ns_support.data.formats.captures import read_json

COMMANDS = Path(sysconfig.get_path("scripts"))


def timed(command: list[str | Path], log: Path) -> dict[str, float]:
    """Run a command with its output in a file; its seconds by the clock and of all processors.

    Raises:
        SystemExit: it failed.
    """
    begin, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as file:
        done = subprocess.run(list(map(str, command)), stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}; its output is in {log}.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return {"seconds": round(time.perf_counter() - begin), "processor_seconds": round(processor)}


def write_photographs(scene: Path, folder: Path) -> list[str]:
    """Copy a scene's images into a folder; the names of those that it holds out."""
    content = read_json(scene / "transforms.json")
    folder.mkdir(parents=True, exist_ok=True)
    for frame in content["frames"]:
        shutil.copy(scene / frame["file_path"], folder)
    return [Path(name).name for name in content.get("test_filenames", [])]


def write_video(photographs: Path, video: Path) -> None:
    """Make a video of all photographs in order of their names, two a second."""
    names = sorted(path.name for path in photographs.iterdir())
    listing = photographs.parent / "frames.txt"
    listing.write_text("".join(f"file '{(photographs / name).resolve()}'\nduration 0.5\n" for name in names))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "concat", "-safe", "0"]
    command += ["-i", str(listing), "-r", "2", "-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", str(video)]
    subprocess.run(command, check=True)


def hold_out(folder: Path, names: list[str]) -> None:
    """Have a scene in nerfstudio's format hold out the images of these names, as far as they have a pose."""
    path = folder / "transforms.json"
    content = read_json(path)
    held = [frame["file_path"] for frame in content["frames"] if Path(frame["file_path"]).name in names]
    content["train_filenames"] = [f["file_path"] for f in content["frames"] if f["file_path"] not in held]
    content["val_filenames"] = content["test_filenames"] = held
    path.write_text(json.dumps(content, indent=1))


def run(given: argparse.Namespace) -> dict[str, Any]:
    """All steps that are not done; what each took, and the scores."""
    work = given.work
    row: dict[str, Any] = {"scene": given.scene.name, "method": given.method, "video": given.video}
    names = write_photographs(given.scene, work / "photographs")
    source, posed = work / "photographs", work / ("of_video" if given.video else "posed")
    if given.video:
        source = work / "video.mp4"
        write_video(work / "photographs", source)
    if not (posed / "transforms.json").is_file():
        row["poses"] = timed([COMMANDS / "raygauss-photos", source, posed], work / "poses.log")
        if not given.video:
            hold_out(posed, names)
    train = [COMMANDS / "ns-train", given.method, "--data", posed, "--output-dir", work, "--vis", "tensorboard"]
    train += ["--experiment-name", posed.name, "--timestamp", f"{given.steps or 'default'}"]
    train += [] if given.steps is None else ["--max-num-iterations", str(given.steps)]
    train += [*given.options, "--steps-per-eval-image", "0", "--steps-per-eval-all-images", "0"]
    config = work / posed.name / given.method / f"{given.steps or 'default'}" / "config.yml"
    if not config.is_file():
        row["training"] = timed(train, work / "train.log")
    scores = work / "eval.json"
    evaluate = [COMMANDS / "ns-eval", "--load-config", config, "--output-path", scores]
    row["evaluation"] = timed(evaluate, work / "eval.log")
    return row | {"scores": json.loads(scores.read_text())["results"]}


def main() -> None:
    """Parse the command line, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("scene", type=Path, help="folder with transforms.json")
    arguments.add_argument("work", type=Path, help="folder for everything that is made")
    arguments.add_argument("--method", default="raygauss")
    arguments.add_argument("--steps", type=int, help="of the training; the method's own number by default")
    arguments.add_argument("--video", action="store_true", help="make a video of the photographs first")
    arguments.add_argument("--output", type=Path, default=Path("from_photographs.json"))
    arguments.add_argument("options", nargs="*", help="more options of `ns-train`, after --")
    given = arguments.parse_args()
    row = run(given)
    write_json(given.output, row)
    print(json.dumps(row, indent=1), machine_line(), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
