r"""Pictures of what careless captures do to a scene, and of what correcting them brings.

    python examples/make_scene.py --output SCENE --resolution 160
    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/careless_pictures.py SCENE --output careless.png

For each fault (poses off by 1 degree and 1 %, exposures of +-1 EV with white balance, things in front of the scene in
half of the photographs) `raygauss` is trained on the faulty views with the correction off and on. A row of the picture
shows a training photograph with its fault, one test view of both trainings, and the photograph of that view, which has
no fault. PSNR over the chosen test views stands above each.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from captures.copies import SceneCopy
from captures.faults import change_exposures, disturb_poses, paste_people
from common.montage import montage
from common.report import machine_line
from common.training import chosen_views, configure, train
from numpy.typing import NDArray
from PIL import Image

from ns_support.data.formats.captures import find


class Fault(NamedTuple):
    """A fault, and the options that correct it."""

    name: str
    make: Callable[[SceneCopy], dict[str, Any]]
    off: tuple[str, ...]
    on: tuple[str, ...]


FAULTS = (
    Fault(
        "poses off by 1 degree",
        lambda scene: disturb_poses(scene, 1.0, 1.0, False, 0),
        ("camera_optimizer.mode=off",),
        ("camera_optimizer.mode=SO3xR3",),
    ),
    Fault(
        "exposure +-1 EV",
        lambda scene: change_exposures(scene, 1.0, 15.0, True, 0),
        ("exposure=off",),
        ("exposure=on",),
    ),
    Fault(
        "things that moved",
        lambda scene: paste_people(scene, 50.0, 6.0, 0),
        ("ignore_moving=False",),
        ("ignore_moving=True",),
    ),
)


def options_of(words: Sequence[str]) -> list[str]:
    """Options as `configure` takes them: a path with a dot begins at the trainer."""
    return [f"pipeline.model.{word}" if "." in word.partition("=")[0] else word for word in words]


def trained(scene: Path, words: Sequence[str], given: argparse.Namespace) -> tuple[NDArray[np.uint8], float]:
    """The first of the chosen test views [H, W, 3] after a training, and the mean PSNR over them."""
    with tempfile.TemporaryDirectory() as folder:
        config = configure("raygauss", scene, given.parser, given.steps, Path(folder), options_of(words))
        config.logging.local_writer.enable = False
        trainer, _ = train(config, float("inf"), given.seed)
        pipeline = trainer.pipeline
        pipeline.eval()
        pictures, scores = [], []
        for _, (camera, batch) in chosen_views(pipeline.datamanager.fixed_indices_eval_dataloader, given.views):
            outputs = pipeline.model.get_outputs_for_camera(camera)
            scores.append(pipeline.model.get_image_metrics_and_images(outputs, batch)[0]["psnr"])
            pictures.append(outputs["rgb"])
    image = (255 * torch.as_tensor(pictures[0]).clamp(0, 1)).round().to(torch.uint8).cpu().numpy()
    return image, float(np.mean(scores))


def on_white(path: Path) -> NDArray[np.uint8]:
    """An image file [H, W, 3] of which what is transparent is white."""
    image = Image.open(path).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def row_of(fault: Fault, given: argparse.Namespace) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Four pictures [H, W, 3] and what stands above them."""
    copy = SceneCopy(given.scene)
    test = next(frame.image for frame in copy.frames if "test" in frame.splits)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "scene"
        report = fault.make(copy)
        copy.write(target, report)
        first = next(iter(report["views"]))
        frame = next(frame for frame in copy.frames if frame.image.as_posix() == first)
        photograph = find(target, frame.entries["file_path"])
        (before, low), (after, high) = trained(target, fault.off, given), trained(target, fault.on, given)
        pictures = [on_white(photograph), before, after, on_white(given.scene / test)]
    print(f"{fault.name}: {low:.2f} dB, corrected {high:.2f} dB", flush=True)
    return pictures, [fault.name, f"not corrected: {low:.1f} dB", f"corrected: {high:.1f} dB", "without the fault"]


def main() -> None:
    """Parse the command line, train, write the picture."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("scene", type=Path, help="a scene without faults")
    arguments.add_argument("--parser", default="blender-data", help="data parser of `ns-train`")
    arguments.add_argument("--steps", type=int, default=1000)
    arguments.add_argument("--views", type=int, default=8, help="test views to evaluate, spread evenly")
    arguments.add_argument("--seed", type=int, default=42)
    arguments.add_argument("--output", type=Path, default=Path("careless.png"))
    given = arguments.parse_args()
    montage([row_of(fault, given) for fault in FAULTS]).save(given.output, optimize=True)
    print(f"{given.output}: {given.steps} steps, {given.views} test views. {machine_line()}")


if __name__ == "__main__":
    main()
