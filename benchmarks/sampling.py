"""Uniform against adaptive step size, on a real scene: time, and the error of the coarser samples.

    python benchmarks/sampling.py SCENE --json outputs/sampling.json
    python benchmarks/sampling.py SCENE --ply cloud.ply --transforms dataparser_transforms.json

SCENE is a nerfstudio folder (transforms.json, sparse_pc.ply). Without --ply the Gaussians are the initial ones of the
published method for real scenes, at the SfM points. With --ply they are those of a trained cloud that `raygauss-export
raygauss` wrote; --transforms names the dataparser_transforms.json of its training, which gives its coordinates. One
view is cast, forward and forward + backward. The step-size rules take turns (A B C A B C ...), so that other load on
the machine affects all of them alike. Printed are the medians over the rounds, and the median of each round's ratio to
the uniform step. Times are CPU time of all threads together, divided by their number. The error is the PSNR of the
image (over black) against an image with a much finer uniform step. For both images rays end at T = 1e-5, so that the
error is that of sampling and not of early stopping.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from common.report import machine_facts, print_table, write_json
from common.timing import Clock
from torch import Tensor

from ns_support.data.ply import read_ply
from ns_support.kernels.harmonics import Y0
from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.initialization import StartPoints
from raygauss_ns.gaussians.ply_formats import read_cloud

STEP, GROWTH, EXPONENT, BOUND = 0.005, 1 / 1024, 1 / 3, 4
"""As published for real scenes: dt0 (u), g, gamma, dt_max / dt0."""
THRESHOLD, NEAR = 0.1, 0.05
"""Density cutoff eps (1/u), and distance of the near plane (u)."""
LATE = 1e-5
"""Transmittance at which rays stop in the images that are compared."""
UNIT = 2 / 3
"""Scene scale u: nerfstudio's scene box is +-1."""
FINE_SLAB = 128
"""Samples per slab of the image with the finer step."""


@dataclass
class Options:
    """What to measure."""

    scene: Annotated[Path, tyro.conf.Positional]
    """Folder with transforms.json and sparse_pc.ply."""
    ply: Path | None = None
    """PLY file of trained Gaussians; the initial Gaussians without it."""
    transforms: Path | None = None
    """The dataparser_transforms.json that the training wrote beside its config.yml."""
    view: int = 0
    """Index of the frame whose camera is used."""
    downscale: int = 1
    """Divides the image's width and height."""
    slab: int = 32
    """Samples per slab, n; the default is the published value."""
    finer: int = 8
    """Factor by which the step of the image that the others are compared with is finer."""
    rounds: int = 5
    """Number of times each step-size rule is run."""
    json: Path | None = None
    """JSON file for the results."""


class Frame(NamedTuple):
    """The transform from the file's coordinates to nerfstudio's: x -> scale (transform x).

    Attributes:
        transform: [3, 4].
        scale: > 0.
    """

    transform: Tensor
    scale: float

    def __call__(self, points: Tensor) -> Tensor:
        """Points [*, 3] in nerfstudio's coordinates."""
        return self.scale * (points @ self.transform[:, :3].T + self.transform[:, 3])


def frame_of(scene: dict[str, Any], transforms: Path | None) -> Frame:
    """The transform of a training or, without one, that which centres the cameras and scales them into [-1, 1]."""
    if transforms is not None:
        written = json.loads(transforms.read_text())
        return Frame(torch.tensor(written["transform"]), written["scale"])
    positions = torch.tensor([frame["transform_matrix"] for frame in scene["frames"]])[:, :3, 3]
    middle = positions.mean(0)
    return Frame(torch.cat([torch.eye(3), -middle[:, None]], 1), 1 / float((positions - middle).abs().max()))


def pose_of(scene: dict[str, Any], view: int, frame: Frame) -> Tensor:
    """Camera-to-world matrix [3, 4] of a view, in nerfstudio's coordinates."""
    pose = torch.tensor(scene["frames"][view]["transform_matrix"])[:3]
    return torch.cat([frame.transform[:, :3] @ pose[:, :3], frame(pose[:, 3])[:, None]], 1)


def rays_of(scene: dict[str, Any], pose: Tensor, downscale: int) -> tuple[Tensor, Tensor, int]:
    """Origins and directions [R, 3] of a view's pixels, without distortion, and the image's width in pixels."""
    width, height = scene["w"] // downscale, scene["h"] // downscale
    x = ((torch.arange(width) + 0.5) * downscale - scene["cx"]) / scene["fl_x"]
    y = ((torch.arange(height) + 0.5) * downscale - scene["cy"]) / scene["fl_y"]
    local = torch.stack([x.expand(height, -1), -y[:, None].expand(-1, width), -torch.ones(height, width)], -1)
    directions = torch.nn.functional.normalize(local.reshape(-1, 3) @ pose[:, :3].T, dim=-1)
    return pose[:, 3].expand_as(directions).contiguous(), directions, width


def start_cloud(folder: Path, frame: Frame, unit: float) -> GaussianCloud:
    """The initial Gaussians of the published method for real scenes, at the SfM points."""
    columns = read_ply(folder / "sparse_pc.ply").columns
    points = torch.from_numpy(np.stack([columns[name] for name in "xyz"], -1).astype(np.float32))
    colors = torch.from_numpy(np.stack([columns[name] for name in ("red", "green", "blue")], -1) / np.float32(255))
    return GaussianCloud(StartPoints(frame(points), colors), unit, density=1.0)


def step_size_rules(unit: float, slab: int) -> dict[str, CastSettings]:
    """The settings that are compared, by name; the others are compared with the first."""
    uniform = CastSettings(STEP * unit, THRESHOLD / unit, 0.5, 1e-3, slab)
    bounded = uniform._replace(max_step=BOUND * STEP * unit)
    return {
        "uniform": uniform,
        "grows with t": bounded._replace(step_growth=GROWTH),
        "grows as T falls": bounded._replace(transmittance_exponent=EXPONENT),
        "both, as published": bounded._replace(step_growth=GROWTH, transmittance_exponent=EXPONENT),
    }


def decibels(image: Tensor, truth: Tensor) -> float:
    """PSNR."""
    return -10 * float(torch.log10((image - truth).square().mean()))


class View(NamedTuple):
    """Gaussians and the rays of a view: what is cast.

    Attributes:
        leaves: the Gaussians' tensors and their colours, which the gradients are of.
        rays: of all pixels, row by row.
    """

    leaves: list[Tensor]
    rays: Rays

    def render(self, settings: CastSettings) -> Tensor:
        """RGB [R, 3] over black."""
        gaussians, colors = Gaussians(*self.leaves[:4]), self.leaves[4]
        return cast(gaussians, colors, self.rays, settings).rgb


def load_view(options: Options) -> View:
    """Read the scene, and the Gaussians or what they are initialised from."""
    scene = json.loads((options.scene / "transforms.json").read_text())
    frame = frame_of(scene, options.transforms)
    with torch.no_grad():
        torch.manual_seed(0)
        cloud = start_cloud(options.scene, frame, UNIT) if options.ply is None else read_cloud(options.ply)
        colors = (0.5 + Y0 * cloud.params["sh_base"]).clamp(0, 1)  # without view dependence
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (*cloud.gaussians(), colors)]
    origins, directions, width = rays_of(scene, pose_of(scene, options.view, frame), options.downscale)
    nears, fars = torch.full((len(origins),), NEAR * UNIT), torch.full((len(origins),), torch.inf)
    return View(leaves, Rays(origins, directions, nears, fars, width))


def sampling_errors(view: View, compared: dict[str, CastSettings], finer: int) -> dict[str, float]:
    """PSNR (dB) of each image against one with a `finer` times smaller uniform step."""
    late = {name: settings._replace(transmittance_threshold=LATE) for name, settings in compared.items()}
    fine = late["uniform"]._replace(step=compared["uniform"].step / finer, samples_per_slab=FINE_SLAB)
    with torch.no_grad():
        truth = view.render(fine)
        return {name: decibels(view.render(settings), truth) for name, settings in late.items()}


def measure_times(view: View, compared: dict[str, CastSettings], rounds: int) -> dict[str, Clock]:
    """Times of the rounds, in which the settings take turns."""
    clocks = {name: Clock() for name in compared}

    def backward(rgb: Tensor) -> None:
        torch.autograd.grad(rgb.sum(), view.leaves)

    for settings in compared.values():
        backward(view.render(settings))  # compiles the kernels
    for _ in range(rounds):
        for name, settings in compared.items():
            clocks[name].measure(lambda settings=settings: view.render(settings), backward)
    return clocks


def table(clocks: dict[str, Clock], errors: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each of the settings."""
    first, rows = clocks["uniform"], []
    for name, clock in clocks.items():
        forward, both = (
            statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            for ours, theirs in ((clock.cpu_forward, first.cpu_forward), (clock.cpu_both, first.cpu_both))
        )
        rows.append(
            {
                "step": name,
                "forward ms": round(statistics.median(clock.cpu_forward), 1),
                "of uniform": f"{forward:.2f}",
                "both ms": round(statistics.median(clock.cpu_both), 1),
                "of uniform ": f"{both:.2f}",
                "PSNR dB": round(errors[name], 1),
            }
        )
    return rows


def main(options: Options) -> None:
    """Measure, print, and write the results."""
    view = load_view(options)
    compared = step_size_rules(UNIT, options.slab)
    errors = sampling_errors(view, compared, options.finer)
    clocks = measure_times(view, compared, options.rounds)
    rows = table(clocks, errors)
    width = view.rays.image_width
    count, size = len(view.leaves[4]), [width, len(view.rays.origins) // width]
    print(f"{options.scene.name}: {count} Gaussians, {size[0]} x {size[1]} rays, n = {options.slab}")
    print_table(rows)
    record = {
        "machine": machine_facts(),
        "scene": options.scene.name,
        "gaussians": count,
        "rays": size,
        "settings": {name: settings._asdict() for name, settings in compared.items()},
        "table": rows,
        "rounds_ms": {name: {"forward": c.cpu_forward, "both": c.cpu_both} for name, c in clocks.items()},
    }
    write_json(options.json, record)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
