"""Damaged files: a command goes on, or ends in one sentence and an exit code, soon and in little memory."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trials.children import Outcome, run
from trials.harm import BYTES, TEXT, entry, harm
from trials.runs import METHODS, config_of, models_folder, run_folder, state_of, train

Work = Callable[[], Any]
_WRONG = "WRONG STATE"
LIMIT = 60.0
"""Longest time (s) of a case."""


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
        from raygauss_ns.export import ExportRayGauss, ExportSplat

        config = run_folder(self.work, METHODS[0]) / "config.yml"
        for name, export in (("raygauss", ExportRayGauss), ("splat", ExportSplat)):
            outcome = run(lambda e=export, n=name: e(config, self.work / f"{n}.ply").main(), self.work / "export.log")
            assert outcome.kind == "ok", outcome.text[-3000:]

    def copy(self, folder: Path, method: str) -> Path:
        """A copy of a run: its config.yml."""
        shutil.copytree(run_folder(self.work, method), run_folder(folder, method))
        path = run_folder(folder, method) / "config.yml"
        path.write_text(path.read_text().replace(f"- {self.work.name}\n", f"- {folder.name}\n"))
        return path

    def newest(self, method: str) -> Path:
        """The newest checkpoint of the finished run."""
        return models_folder(self.work, method) / "step-000000003.ckpt"


def _rewritten(state: dict[str, Any], rng: random.Random, other: dict[str, Any]) -> tuple[str, Any]:
    """A checkpoint that is a whole file with other contents."""
    name = rng.choice([name for name, value in state["pipeline"].items() if value.ndim > 0])
    value = state["pipeline"][name]
    changes: dict[str, Callable[[], Any]] = {
        "lacks an entry": lambda: state.pop(rng.choice(["step", "pipeline", "optimizers"])),
        "lacks a tensor": lambda: state["pipeline"].pop(name),
        "a tensor too many": lambda: state["pipeline"].update({"_model.newer": torch.zeros(3)}),
        "a tensor of another shape": lambda: state["pipeline"].update({name: value[:-1].clone()}),
        "a tensor repeated without end": lambda: state["pipeline"].update(
            {name: value[:1].expand(10**9, *value.shape[1:])}
        ),
        "another method's": lambda: (state.clear(), state.update(other)),
        "empty": state.clear,
    }
    kind = rng.choice(list(changes))
    changes[kind]()
    return kind, state


def _load(config: Path, originals: Sequence[Path]) -> None:
    """Open a run, and say so if it is none that was saved: bits that were flipped, and not noticed."""
    from ns_support.commands.finished import open_finished

    pipeline: Any = open_finished(config, "test")[1]
    found = pipeline.state_dict()
    for path in originals:
        saved = (state_of(path) or {})["pipeline"]
        if saved.keys() == found.keys() and all(torch.equal(found[name], saved[name]) for name in saved):
            return
    print(_WRONG)


def checkpoint(runs: Runs, folder: Path, method: str, rng: random.Random) -> tuple[str, Work]:
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
        return f"{kind}, loaded", lambda: _load(config, originals)
    resumed = config_of(method, runs.scenes / "blender", folder / "resumed", 1, load_dir=config.parent)
    return f"{kind}, resumed", lambda: train(resumed)


def config(runs: Runs, folder: Path, method: str, rng: random.Random) -> tuple[str, Work]:
    """A damaged config.yml, opened as `raygauss-export` does."""
    from ns_support.commands.finished import open_finished

    path = runs.copy(folder, method)
    kind = harm(path, BYTES | TEXT | TEXT, rng)
    return kind, lambda: open_finished(path, "inference")


def normalization(runs: Runs, folder: Path, method: str, rng: random.Random) -> tuple[str, Work]:
    """A damaged dataparser_transforms.json beside a checkpoint of version 0.1.0, trained further."""
    path = runs.copy(folder, method)
    kind = harm(path.with_name("dataparser_transforms.json"), BYTES | TEXT | {"entry": entry}, rng)
    saved = models_folder(folder, method) / "step-000000003.ckpt"
    state = torch.load(saved, weights_only=True)
    del state["trained_on"]
    torch.save(state, saved)
    resumed = config_of(method, runs.scenes / "blender", folder / "resumed", 1, load_dir=path.parent)
    return kind, lambda: train(resumed)


def _scene(runs: Runs, name: str, folder: Path) -> Path:
    shutil.copytree(runs.scenes / name, folder / "data")
    return folder / "data"


def image(runs: Runs, folder: Path, method: str, rng: random.Random) -> tuple[str, Work]:
    """A damaged image, or one of another size or kind."""
    data = _scene(runs, rng.choice(("nerfstudio", "colmap")), folder)
    path = rng.choice(sorted((data / "images").iterdir()))
    if rng.random() < 0.7:
        kind = harm(path, BYTES, rng)
    else:
        size = rng.choice(((1, 1), (5, 5), (40, 1), (3000, 2), (56, 40), (80, 112), (30_000, 30_000)))
        kind = f"{size[0]} x {size[1]} pixels"
        Image.new(rng.choice(("1", "L")) if size[0] > 10_000 else rng.choice(("RGB", "L", "I;16", "P")), size).save(
            path
        )
    return kind, lambda: train(config_of(method, data, folder, 1))


def transforms(runs: Runs, folder: Path, method: str, rng: random.Random) -> tuple[str, Work]:
    """A damaged transforms.json, or one of a Blender scene."""
    kind_of_scene = rng.choice(("nerfstudio", "nerfstudio", "blender"))
    data = _scene(runs, kind_of_scene, folder)
    path = data / ("transforms.json" if kind_of_scene == "nerfstudio" else "transforms_train.json")
    kinds = {"entry": entry, "another entry": entry, "number": TEXT["number"], **BYTES}
    kind = harm(path, kinds if rng.random() < 0.5 else {"entry": entry}, rng)
    return kind, lambda: train(config_of(method, data, folder, 1))


def colmap(runs: Runs, folder: Path, method: str, rng: random.Random) -> tuple[str, Work]:
    """A damaged file of a COLMAP model."""
    data = _scene(runs, "colmap", folder)
    path = data / "sparse" / "0" / rng.choice(("cameras.bin", "images.bin", "points3D.bin"))
    return f"{path.stem} {harm(path, BYTES, rng)}", lambda: train(config_of(method, data, folder, 1))


def ply(runs: Runs, folder: Path, method: str, rng: random.Random) -> tuple[str, Work]:
    """Damaged Gaussians to start from, or damaged SfM points."""
    if method == METHODS[0] and rng.random() < 0.7:
        path = Path(shutil.copy(runs.work / rng.choice(("raygauss.ply", "splat.ply")), folder / "in.ply"))
        kind = harm(path, BYTES | TEXT, rng)
        data = runs.scenes / "blender"
        return kind, lambda: train(config_of(method, data, folder, 1, pipeline__model__initial_ply=path))
    data = _scene(runs, "nerfstudio", folder)
    return f"points {harm(data / 'sparse_pc.ply', BYTES | TEXT, rng)}", lambda: train(
        config_of(method, data, folder, 1)
    )


GROUPS = {f.__name__: f for f in (checkpoint, config, normalization, image, transforms, colmap, ply)}


def _kind(outcome: Outcome) -> str:
    if _WRONG in outcome.text:
        return "accepted though wrong"
    return "traceback of ours" if outcome.is_ours else outcome.kind


def damage(scenes: Path, work: Path, count: int, seed: int, groups: Sequence[str] | None) -> list[dict[str, Any]]:
    """Damaged files of each group.

    Args:
        scenes: of `make_scenes`.
        work: folder for the runs.
        count: files of each group.
        seed: of the damage; a case has its own, and is the same whichever others there are.
        groups: which; None: all.
    """
    runs, rows = Runs(scenes, work), []
    for group in groups or GROUPS:
        for i in range(count):
            folder, rng = work / f"{group}_{i:04d}", random.Random(f"{seed} {group} {i}")
            folder.mkdir()
            method = METHODS[i % 2]
            kind, case = GROUPS[group](runs, folder, method, rng)
            outcome = run(case, work / "case.log", LIMIT)
            row = {
                "group": group,
                "n": i,
                "method": method,
                "damage": kind,
                "kind": _kind(outcome),
                "code": outcome.code,
            }
            row |= {"s": round(outcome.seconds, 2), "MiB": round(outcome.mebibytes), "last": outcome.last}
            if outcome.kind in ("traceback", "hang", "signal", "silent"):
                row["text"] = outcome.text[-3000:]
            rows.append(row)
            shutil.rmtree(folder)
    return rows
