"""Strange settings and scenes: a sentence, or a training to its end with finite numbers and a finite score."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trials.children import run
from trials.runs import METHODS, config_of, evaluate, models_folder, run_folder, state_of, train

RAY, NGP = METHODS
Change = Callable[[Any], None]
_SPLITS = ("train", "val", "test")


def _images(paint: Callable[[Image.Image], Image.Image]) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        for path in data.rglob("*.png"):
            with Image.open(path) as image:
                painted = paint(image.convert("RGBA"))
            painted.save(path)

    return change


def _noise(image: Image.Image) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (image.height, image.width, 4), dtype=np.uint8))


def _transparent(image: Image.Image) -> Image.Image:
    image.putalpha(0)
    return image


def _json(change: Callable[[dict[str, Any]], None], splits: tuple[str, ...] = _SPLITS) -> Callable[[Path], None]:
    def apply(data: Path) -> None:
        for split in splits:
            path = data / f"transforms_{split}.json"
            entries = json.loads(path.read_text())
            change(entries)
            path.write_text(json.dumps(entries))

    return apply


def _poses(change: Callable[[list[list[float]]], None]) -> Callable[[Path], None]:
    def each(entries: dict[str, Any]) -> None:
        for frame in entries["frames"]:
            change(frame["transform_matrix"])

    return _json(each)


def _moved(factor: float) -> Callable[[Path], None]:
    def change(matrix: list[list[float]]) -> None:
        for row in matrix[:3]:
            row[3] *= factor

    return _poses(change)


def _away(matrix: list[list[float]]) -> None:
    for row in matrix[:3]:
        row[0], row[2] = -row[0], -row[2]


def _one_pose(matrix: list[list[float]]) -> None:
    matrix[:] = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]]


def _solid(*color: int) -> Callable[[Path], None]:
    return _images(lambda image: Image.new("RGBA", image.size, color))


SCENES: dict[str, Callable[[Path], None]] = {
    "as it is": lambda data: None,
    "black images": _solid(0, 0, 0, 255),
    "white images": _solid(255, 255, 255, 255),
    "noise": _images(_noise),
    "alpha 0 everywhere": _images(_transparent),
    "one image": _json(lambda entries: entries.update(frames=entries["frames"][:1]), ("train",)),
    "scale 1e-4": _moved(1e-4),
    "scale 1e5": _moved(1e5),
    "scale 1e-30": _moved(1e-30),
    "cameras in one place": _moved(0.0),
    "one pose for all": _poses(_one_pose),
    "cameras look away": _poses(_away),
    "field of view 1e-6": _json(lambda entries: entries.update(camera_angle_x=1e-6)),
    "field of view 3.1415": _json(lambda entries: entries.update(camera_angle_x=3.1415)),
}


def _faster(factor: float) -> Change:
    def change(config: Any) -> None:
        for group in config.optimizers.values():
            group["optimizer"].lr *= factor
            if hasattr(group["scheduler"], "lr_final") and group["scheduler"].lr_final is not None:
                group["scheduler"].lr_final *= factor

    return change


def _with(**fields: Any) -> Change:
    def change(config: Any) -> None:
        for name, value in fields.items():
            setattr(config.pipeline.model, name, value)

    return change


SETTINGS: dict[str, dict[str, Change]] = {
    "learning rates x 100": {RAY: _faster(100.0), NGP: _faster(100.0)},
    "learning rates x 1e6": {RAY: _faster(1e6), NGP: _faster(1e6)},
    "learning rates x 0": {RAY: _faster(0.0), NGP: _faster(0.0)},
    "negative learning rates": {RAY: _faster(-1.0), NGP: _faster(-1.0)},
    "near plane beyond the scene": {RAY: _with(near_plane=1e6), NGP: _with(near_plane=1e2, far_plane=1e3)},
    "step size 1e3": {RAY: _with(step_size=1e3), NGP: _with(render_step_size=1e3)},
    "initial scale 1e4": {RAY: _with(initial_scale=1e4)},
    "initial scale e^80": {RAY: _with(initial_scale=math.exp(80.0))},
    "initial density 1e6": {RAY: _with(initial_density=1e6)},
    "scene unit 1e-6": {RAY: _with(scene_unit=1e-6)},
    "scene unit 1e6": {RAY: _with(scene_unit=1e6)},
    "one Gaussian": {RAY: _with(num_random=1)},
    "grid resolution 1": {NGP: _with(grid_resolution=1)},
    "smallest network": {NGP: _with(num_levels=1, log2_hashmap_size=3, base_res=1, max_res=1, hidden_dim=1)},
    "cone angle 10": {NGP: _with(cone_angle=10.0)},
}


def _judged(folder: Path, method: str, steps: int) -> tuple[str, str]:
    """Whether what a training ended with is finite, and its score."""
    state = state_of(models_folder(folder, method) / f"step-{steps - 1:09d}.ckpt")
    if state is None:
        return "no whole checkpoint", ""
    values = {name: value for name, value in state["pipeline"].items() if value.is_floating_point()}
    broken = [name for name, value in values.items() if bool(value.isnan().any())]
    seen = run(lambda: evaluate(run_folder(folder, method) / "config.yml", folder / "eval.json"), folder / "eval.log")
    if seen.kind != "ok":
        return f"evaluation: {seen.kind}", seen.last[-100:]
    score = json.loads((folder / "eval.json").read_text())["results"]["psnr"]
    if broken:
        return f"NaN in {broken[0]}", f"{score:.2f} dB"
    return ("finite" if not math.isnan(score) else "PSNR is NaN"), f"{score:.2f} dB"


def numerics(scenes: Path, work: Path, steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Every strange scene with both methods, and every strange setting.

    Args:
        scenes: of `make_scenes`.
        work: folder for the runs.
        steps: length of a training.
        seed: of the trainings.

    Yields:
        A row for each: "finite", "sentence" or what is wrong, with the score or the last line.
    """
    cases: list[tuple[str, str, Callable[[Path], None], Change]] = [
        (name, method, scene, lambda config: None) for name, scene in SCENES.items() for method in METHODS
    ]
    cases += [
        (name, method, SCENES["as it is"], change)
        for name, changes in SETTINGS.items()
        for method, change in changes.items()
    ]
    for i, (name, method, scene, change) in enumerate(cases):
        folder = work / f"numerics_{i:03d}"
        shutil.copytree(scenes / "blender", folder / "data")
        scene(folder / "data")
        config = config_of(method, folder / "data", folder, steps, machine__seed=seed)
        change(config)
        outcome = run(lambda config=config: train(config), folder / "train.log", 120.0)
        kind = "traceback of ours" if outcome.is_ours else outcome.kind
        result, score = _judged(folder, method, steps) if kind == "ok" else (kind, outcome.last[-140:])
        if "pictures are empty" in outcome.text:
            result += ", said to be empty"
        yield {"case": name, "method": method, "result": result, "s": round(outcome.seconds, 1), "what": score}
        shutil.rmtree(folder)
