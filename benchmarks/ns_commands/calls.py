"""The commands: how each is called, and which files it must write."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
"""Options that make a training step fast."""
RADIUS = {"lego_200": 4.0}
"""Distance of the camera path's cameras from the scene's centre; 1 for other scenes, whose poses nerfstudio scales."""
PORT = 7107


@dataclass
class Case:
    """One method on one scene."""

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
        """The option that loads the trained run."""
        return ["--load-config", str(self.config)]


@dataclass
class Command:
    """How to call a command, and how to check that it worked."""

    words: Callable[[Case], list[str]]
    files: Callable[[Case], list[Path]]
    """Files that the command must write."""
    refused: str | None = None
    """The error message that is expected for methods other than raygauss; None: the command supports all methods."""


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
    """A camera path of two frames on a circle around the scene's centre, 64 x 48 pixels."""
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
_LENS = (
    *("--camera-path-filename", "path.json", "--output-format", "images"),
    *("--aperture", "0.1", "--focus-distance", "0.8", "--lens-samples", "8"),
)
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
    "raygauss-render": Command(
        lambda case: ["raygauss-render", "camera-path", *case.load, "--output-path", "through_lens", *_LENS],
        _rendered("through_lens"),
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
