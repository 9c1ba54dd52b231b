"""Memory of a training on many large photographs: peak of the process, from reading to steps at full resolution.

    python benchmarks/many_photographs.py --count 300 --width 4000 --height 3000 --steps 700

Writes photographs of noise (JPEG) of cameras on a ring, in nerfstudio's format, and trains `raygauss` on them with its
defaults but for the number of steps, which all sizes of image share, and without a search for points, of which noise
has none. The pictures show nothing that could be learnt: only memory and seconds count. Nine in ten of the photographs
are trained on, the others are for evaluation. With 700 steps each of 270 images is used at its full size.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
from common.report import machine_line, write_json
from common.system import peak_mebibytes
from common.training import configure, train
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer
from PIL import Image


def write_photographs(folder: Path, count: int, width: int, height: int) -> None:
    """Photographs of noise, and a transforms.json with cameras on a ring that look at its centre."""
    random, frames = np.random.default_rng(0), []
    for i in range(count):
        coarse = random.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i:04d}.jpg")
        c, s = math.cos(2 * math.pi * i / count), math.sin(2 * math.pi * i / count)
        pose = [[c, 0, s, 3 * s], [0, 1, 0, 0], [-s, 0, c, 3 * c], [0, 0, 0, 1]]
        frames.append({"file_path": f"{i:04d}.jpg", "transform_matrix": pose})
    lens = {"fl_x": 0.9 * width, "fl_y": 0.9 * width, "cx": width / 2, "cy": height / 2, "w": width, "h": height}
    (folder / "transforms.json").write_text(json.dumps(lens | {"camera_model": "OPENCV", "frames": frames}))


def main() -> None:
    """Parse the command line, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=300, help="photographs")
    arguments.add_argument("--width", type=int, default=4000, help="pixels")
    arguments.add_argument("--height", type=int, default=3000, help="pixels")
    arguments.add_argument("--steps", type=int, default=700)
    arguments.add_argument("--output", type=Path, help="JSON file for the results")
    given = arguments.parse_args()
    rows: list[dict[str, float]] = []
    begin = time.perf_counter()

    def watch(trainer: Trainer) -> None:
        def after(step: int) -> None:
            downscales = trainer.pipeline.model.downscales
            if not rows or rows[-1]["downscales"] != downscales or step + 1 == given.steps:
                seconds = round(time.perf_counter() - begin, 1)
                rows.append(
                    {
                        "step": step + 1,
                        "downscales": downscales,
                        "seconds": seconds,
                        "peak_gib": peak_mebibytes() / 1024,
                    }
                )
                print(rows[-1], flush=True)

        trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], after))

    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene"
        scene.mkdir()
        write_photographs(scene, given.count, given.width, given.height)
        print(f"{given.count} photographs written in {time.perf_counter() - begin:.0f} s", flush=True)
        begin = time.perf_counter()
        config = configure("raygauss", scene, "nerfstudio-data", given.steps, Path(folder) / "run", [])
        config.pipeline.datamanager.triangulated_points = 0
        train(config, float("inf"), 42, prepare=watch)
    photographs = f"{given.count} of {given.width} x {given.height}"
    write_json(given.output, {"machine": machine_line(), "photographs": photographs, "points": rows})


if __name__ == "__main__":
    main()
