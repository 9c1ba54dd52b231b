"""Damaged files: a command goes on, or ends in one sentence and an exit code, soon and in little memory."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from trials.children import Outcome, run
from trials.harm import BYTES, TEXT, entry, harm
from trials.runs import METHODS, config_of, difference, evaluate, models_folder, run_folder, state_of, train

_WRONG = "WRONG STATE"
_SAME = 1e-4
"""Relative difference of two numbers of six digits that are the same."""
LIMIT = 60.0
"""Longest time (s) of a case."""


class Case(NamedTuple):
    """A damaged file, and a command that meets it.

    Attributes:
        damage: what was done to the file.
        file: the file.
        work: the command.
        is_right: after a command that went on, whether what it made is what it would have made of the undamaged file,
            or what it said tells of the difference.
    """

    damage: str
    file: Path
    work: Callable[[], Any]
    is_right: Callable[[Outcome], bool]


class Runs:
    """A finished run of each method with two checkpoints, and what is exported of it, copied for each case."""

    def __init__(self, scenes: Path, work: Path) -> None:
        self.scenes, self.work = scenes, work / "finished"
        for method in METHODS:
            config = config_of(
                method, scenes / "blender", self.work, 4, steps_per_save=2, save_only_latest_checkpoint=False
            )
            outcome = run(lambda config=config: train(config), self.work / f"{method}.log", 600.0)
            assert outcome.kind == "ok", outcome.text[-3000:]
        self.resumed = {method: [self._resumed(method, step) for step in (2, 3)] for method in METHODS}
        from raygauss_ns.export import ExportRayGauss, ExportSplat

        config = run_folder(self.work, METHODS[0]) / "config.yml"
        for name, export in (("raygauss", ExportRayGauss), ("splat", ExportSplat)):
            outcome = run(lambda e=export, n=name: e(config, self.work / f"{n}.ply").main(), self.work / "export.log")
            assert outcome.kind == "ok", outcome.text[-3000:]

    def _resumed(self, method: str, step: int) -> dict[str, Any] | None:
        """What a further step makes of the undamaged checkpoint of a step."""
        output = self.work / f"resumed_{step}"
        config = config_of(
            method, self.scenes / "blender", output, 1, load_dir=run_folder(self.work, method), load_step=step
        )
        outcome = run(lambda: train(config), self.work / "resumed.log", 600.0)
        assert outcome.kind == "ok", outcome.text[-3000:]
        return _newest_state(output, method)

    def copy(self, folder: Path, method: str) -> Path:
        """A copy of a run: its config.yml."""
        shutil.copytree(run_folder(self.work, method), run_folder(folder, method))
        path = run_folder(folder, method) / "config.yml"
        path.write_text(path.read_text().replace(f"- {self.work.name}\n", f"- {folder.name}\n"))
        return path

    def newest(self, method: str) -> Path:
        """The newest checkpoint of the finished run."""
        return models_folder(self.work, method) / "step-000000003.ckpt"


def _newest_state(output: Path, method: str) -> dict[str, Any] | None:
    return state_of(max(models_folder(output, method).iterdir()))


def _rewritten(state: dict[str, Any], rng: random.Random, other: dict[str, Any]) -> tuple[str, Any]:
    """A checkpoint that is a whole file with other contents."""
    name = rng.choice([name for name, value in state["pipeline"].items() if value.ndim > 0 and value.numel() > 0])
    value = state["pipeline"][name]
    changes: dict[str, Callable[[], Any]] = {
        "lacks an entry": lambda: state.pop(rng.choice(["step", "pipeline", "optimizers"])),
        "lacks a tensor": lambda: state["pipeline"].pop(name),
        "a tensor too many": lambda: state["pipeline"].update({"_model.newer": torch.zeros(3)}),
        "a tensor of another shape": lambda: state["pipeline"].update({name: value[:-1].clone()}),
        "a tensor repeated without end": lambda: state["pipeline"].update(
            {name: value[:1].expand(10**9, *value.shape[1:])}
        ),
        "an optimiser's tensor of another shape": lambda: _shorten(state["optimizers"], rng),
        "another method's": lambda: (state.clear(), state.update(other)),
        "empty": state.clear,
    }
    kind = rng.choice(list(changes))
    changes[kind]()
    return kind, state


def _shorten(optimizers: dict[str, Any], rng: random.Random) -> None:
    """Take the last row of a tensor in an optimiser's state."""
    places = [
        (of_parameter, name)
        for optimizer in optimizers.values()
        for of_parameter in optimizer["state"].values()
        for name, value in of_parameter.items()
        if isinstance(value, torch.Tensor) and value.ndim > 0 and value.numel() > 0
    ]
    of_parameter, name = rng.choice(places)
    of_parameter[name] = of_parameter[name][:-1].clone()


def _load(config: Path, originals: Sequence[Path], mode: str) -> None:
    """Open a run, and say so if it is none that was saved: bits that were flipped, and not noticed."""
    from ns_support.commands.finished import open_finished

    pipeline: Any = open_finished(config, mode)[1]
    found = pipeline.state_dict()
    for path in originals:
        saved = (state_of(path) or {})["pipeline"]
        if mode == "inference":  # which has no use for what is remembered of the training images
            saved = {name: value for name, value in saved.items() if not name.startswith("datamanager.memory.")}
        if saved.keys() == found.keys() and all(torch.equal(found[name], saved[name]) for name in saved):
            return
    print(_WRONG)


def _loads_right(outcome: Outcome) -> bool:
    return _WRONG not in outcome.text


def _resumes_right(runs: Runs, folder: Path, method: str) -> Callable[[Outcome], bool]:
    """Whether a step after the damaged run is bit for bit one after an undamaged checkpoint of it."""

    def judge(outcome: Outcome) -> bool:
        found = _newest_state(folder / "resumed", method)
        return any(difference(found, wanted) == 0.0 for wanted in runs.resumed[method])

    return judge


def _is_finite(folder: Path, method: str) -> Callable[[Outcome], bool]:
    """Whether all numbers of the newest checkpoint are finite, or it was said that some are not."""

    def judge(outcome: Outcome) -> bool:
        state = _newest_state(folder, method)
        # A scale below which no camera resolves a Gaussian is minus infinity where none sees it.
        values = [] if state is None else [v for k, v in state["pipeline"].items() if not k.endswith("scale_floor")]
        is_finite = all(bool(value.isfinite().all()) for value in values)
        return state is not None and (is_finite or "not finite" in outcome.text)

    return judge


def _train_and_score(config: Any, folder: Path, method: str) -> Callable[[], Any]:
    """A step of a training and an evaluation, which read all images between them."""

    def work() -> None:
        train(config)
        evaluate(run_folder(folder, method) / "config.yml", folder / "eval.json")

    return work


def checkpoint(runs: Runs, folder: Path, method: str, rng: random.Random) -> Case:
    """A damaged newest checkpoint, evaluated or trained further."""
    config = runs.copy(folder, method)
    path = models_folder(folder, method) / "step-000000003.ckpt"
    if rng.random() < 0.6:
        kind = harm(path, BYTES, rng)
    else:
        other = torch.load(runs.newest(METHODS[1 - METHODS.index(method)]), weights_only=True)
        kind, state = _rewritten(torch.load(path, weights_only=True), rng, other)
        torch.save(state, path)
    if rng.random() < 0.5:
        originals = sorted(models_folder(runs.work, method).iterdir())
        return Case(f"{kind}, loaded", path, lambda: _load(config, originals, "test"), _loads_right)
    resumed = config_of(method, runs.scenes / "blender", folder / "resumed", 1, load_dir=config.parent)
    return Case(f"{kind}, resumed", path, lambda: train(resumed), _resumes_right(runs, folder, method))


def config(runs: Runs, folder: Path, method: str, rng: random.Random) -> Case:
    """A damaged config.yml, opened as `raygauss-export` does."""
    path = runs.copy(folder, method)
    kind = harm(path, BYTES | TEXT | TEXT, rng)
    return Case(kind, path, lambda: _load(path, [runs.newest(method)], "inference"), _loads_right)


def _normalization_of(path: Path) -> Any:
    """[13] float64: transform and scale, or None if the file does not say them."""
    try:
        content = json.loads(path.read_text("utf8"))
        values = np.append(np.array(content["transform"], dtype=np.float64), float(content["scale"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return values if len(values) == 13 else None


def normalization(runs: Runs, folder: Path, method: str, rng: random.Random) -> Case:
    """A damaged dataparser_transforms.json beside a checkpoint of version 0.1.0, trained further."""
    path = runs.copy(folder, method).with_name("dataparser_transforms.json")
    before = _normalization_of(path)
    kind = harm(path, BYTES | TEXT | {"entry": entry}, rng)
    after = _normalization_of(path)
    saved = models_folder(folder, method) / "step-000000003.ckpt"
    state = torch.load(saved, weights_only=True)
    del state["trained_on"]
    torch.save(state, saved)
    resumed = config_of(method, runs.scenes / "blender", folder / "resumed", 1, load_dir=path.parent)
    trains_right = _resumes_right(runs, folder, method)

    def judge(outcome: Outcome) -> bool:
        same = after is not None and np.allclose(before, after, rtol=_SAME, atol=_SAME)
        return (same or "is damaged" in outcome.text) and trains_right(outcome)

    return Case(kind, path, lambda: train(resumed), judge)


def _scene(runs: Runs, name: str, folder: Path) -> Path:
    shutil.copytree(runs.scenes / name, folder / "data")
    return folder / "data"


def _pixels(path: Path) -> Any:
    """[H, W, 4], or None if Pillow can't read it."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGBA"))
    except Exception:  # whatever a broken image makes Pillow raise: the trial compares what can be compared
        return None


def image(runs: Runs, folder: Path, method: str, rng: random.Random) -> Case:
    """A damaged image, or one of another size or kind."""
    data = _scene(runs, rng.choice(("nerfstudio", "colmap")), folder)
    path = rng.choice(sorted((data / "images").iterdir()))
    before = _pixels(path)
    if rng.random() < 0.7:
        kind = harm(path, BYTES, rng)
    else:
        size = rng.choice(((1, 1), (5, 5), (40, 1), (3000, 2), (56, 40), (80, 112), (30_000, 30_000)))
        kind = f"{size[0]} x {size[1]} pixels"
        Image.new(rng.choice(("1", "L")) if size[0] > 10_000 else rng.choice(("RGB", "L", "I;16", "P")), size).save(
            path
        )

    def judge(outcome: Outcome) -> bool:
        return "Warning:" in outcome.text or np.array_equal(before, _pixels(path))

    return Case(kind, path, _train_and_score(config_of(method, data, folder, 1), folder, method), judge)


def transforms(runs: Runs, folder: Path, method: str, rng: random.Random) -> Case:
    """A damaged transforms.json, or one of a Blender scene."""
    kind_of_scene = rng.choice(("nerfstudio", "nerfstudio", "blender"))
    data = _scene(runs, kind_of_scene, folder)
    path = data / ("transforms.json" if kind_of_scene == "nerfstudio" else "transforms_train.json")
    kinds = {"entry": entry, "another entry": entry, "number": TEXT["number"], **BYTES}
    kind = harm(path, kinds if rng.random() < 0.5 else {"entry": entry}, rng)
    work = _train_and_score(config_of(method, data, folder, 1), folder, method)
    return Case(kind, path, work, _is_finite(folder, method))


def colmap(runs: Runs, folder: Path, method: str, rng: random.Random) -> Case:
    """A damaged file of a COLMAP model."""
    data = _scene(runs, "colmap", folder)
    path = data / "sparse" / "0" / rng.choice(("cameras.bin", "images.bin", "points3D.bin"))
    kind = f"{path.stem} {harm(path, BYTES, rng)}"
    work = _train_and_score(config_of(method, data, folder, 1), folder, method)
    return Case(kind, path, work, _is_finite(folder, method))


def ply(runs: Runs, folder: Path, method: str, rng: random.Random) -> Case:
    """Damaged Gaussians to start from, or damaged SfM points."""
    if method == METHODS[0] and rng.random() < 0.7:
        path = Path(shutil.copy(runs.work / rng.choice(("raygauss.ply", "splat.ply")), folder / "in.ply"))
        kind = harm(path, BYTES | TEXT, rng)
        config = config_of(method, runs.scenes / "blender", folder, 1, pipeline__model__initial_ply=path)
    else:
        path = _scene(runs, "nerfstudio", folder) / "sparse_pc.ply"
        kind = f"points {harm(path, BYTES | TEXT, rng)}"
        config = config_of(method, path.parent, folder, 1)
    return Case(kind, path, lambda: train(config), _is_finite(folder, method))


GROUPS = {f.__name__: f for f in (checkpoint, config, normalization, image, transforms, colmap, ply)}


def _kind(case: Case, outcome: Outcome) -> str:
    if outcome.is_ours:
        return "traceback of ours"
    return "accepted though wrong" if outcome.kind == "ok" and not case.is_right(outcome) else outcome.kind


def damage(
    scenes: Path, work: Path, cases: Sequence[int], seed: int, groups: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    """Damaged files of each group.

    Args:
        scenes: of `make_scenes`.
        work: folder for the runs.
        cases: numbers of the files of each group.
        seed: of the damage; a case has its own, and is the same whichever others there are.
        groups: which; None: all.

    Yields:
        A row for each file: how the command ended and, if it refused the file, whether it named it.
    """
    runs = Runs(scenes, work)
    for group in groups or GROUPS:
        for i in cases:
            folder, rng = work / f"{group}_{i:04d}", random.Random(f"{seed} {group} {i}")
            folder.mkdir()
            method = METHODS[i % 2]
            case = GROUPS[group](runs, folder, method, rng)
            outcome = run(case.work, work / "case.log", LIMIT)
            row = {
                "group": group,
                "n": i,
                "method": method,
                "damage": case.damage,
                "kind": _kind(case, outcome),
                "code": outcome.code,
                "names the file": case.file.name in outcome.text if outcome.kind == "sentence" else "",
            }
            row |= {"s": round(outcome.seconds, 2), "MiB": round(outcome.mebibytes), "last": outcome.last}
            if row["kind"] not in ("ok", "sentence"):
                row["text"] = outcome.text[-3000:]
            yield row
            shutil.rmtree(folder)
