"""A uniform step against one that grows, on a real scene: time, and what the coarser samples cost.

    python benchmarks/sampling.py SCENE --json outputs/sampling.json
    python benchmarks/sampling.py SCENE --ply cloud.ply --transforms dataparser_transforms.json

SCENE is a nerfstudio folder (transforms.json, sparse_pc.ply). Without --ply the Gaussians are those that training as
published for real scenes starts from, at the SfM points; with it, those of a trained cloud that `raygauss-export
raygauss` wrote, with the file of its training that says which coordinates these are. One view is cast forward and
forward + backward, and every way of sampling takes its turn (A B C A B C ...), so that what else the machine does falls
on all alike: the medians over the rounds, and the median of each round's ratio to the first way, are printed. CPU time
of all threads together, divided by their number. The error is the PSNR of the image (on black) against one of a much
finer uniform step; for this, all rays go on to T = 1e-5, so that it is the samples' error and not that of stopping.
"""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from casting import Clock, print_table
from torch import Tensor

from ns_support.concurrency.threads import num_threads
from ns_support.data.ply import read_ply
from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.initialization import StartPoints
from raygauss_ns.gaussians.ply_formats import read_cloud

STEP, GROWTH, EXPONENT, BOUND = 0.005, 1 / 1024, 1 / 3, 4
"""As published for real scenes: dt0 (u), g, gamma, dt_max / dt0."""
THRESHOLD, NEAR = 0.1, 0.05
"""eps (1/u) and the near plane (u)."""
LATE = 1e-5
"""T at which rays stop where images are compared."""


@dataclass
class Options:
    """What to measure."""

    scene: Annotated[Path, tyro.conf.Positional]
    """Folder with transforms.json and sparse_pc.ply."""
    ply: Path | None = None
    """Gaussians of a training instead of those that one starts from."""
    transforms: Path | None = None
    """What that training wrote as dataparser_transforms.json beside its config.yml: its coordinates."""
    view: int = 0
    """Which frame's camera."""
    downscale: int = 1
    """Divides the number of pixels of a side."""
    slab: int = 32
    """Samples of a slab, n: as published."""
    finer: int = 8
    """By how much the step of the image that the others are compared with is finer."""
    rounds: int = 5
    """Times that every way of sampling is run."""
    json: Path | None = None
    """Where to write the figures."""


class Frame(NamedTuple):
    """From the file's coordinates to nerfstudio's: x -> scale (transform x).

    Attributes:
        transform: [3, 4].
        scale: a number.
    """

    transform: Tensor
    scale: float

    def __call__(self, points: Tensor) -> Tensor:
        """Points [*, 3] in nerfstudio's coordinates."""
        return self.scale * (points @ self.transform[:, :3].T + self.transform[:, 3])


def frame_of(scene: dict[str, Any], transforms: Path | None) -> Frame:
    """What a training has written, or else: the cameras' mean in the middle, the farthest one at 1."""
    if transforms is not None:
        written = json.loads(transforms.read_text())
        return Frame(torch.tensor(written["transform"]), written["scale"])
    positions = torch.tensor([frame["transform_matrix"] for frame in scene["frames"]])[:, :3, 3]
    middle = positions.mean(0)
    return Frame(torch.cat([torch.eye(3), -middle[:, None]], 1), 1 / float((positions - middle).abs().max()))


def pose_of(scene: dict[str, Any], view: int, frame: Frame) -> Tensor:
    """Camera to world [3, 4] of a view, in nerfstudio's coordinates."""
    pose = torch.tensor(scene["frames"][view]["transform_matrix"])[:3]
    return torch.cat([frame.transform[:, :3] @ pose[:, :3], frame(pose[:, 3])[:, None]], 1)


def rays_of(scene: dict[str, Any], pose: Tensor, downscale: int) -> tuple[Tensor, Tensor, int]:
    """Origins and directions [R, 3] of a view's pixels, distortion left out, and the pixels of a row."""
    width, height = scene["w"] // downscale, scene["h"] // downscale
    x = ((torch.arange(width) + 0.5) * downscale - scene["cx"]) / scene["fl_x"]
    y = ((torch.arange(height) + 0.5) * downscale - scene["cy"]) / scene["fl_y"]
    local = torch.stack([x.expand(height, -1), -y[:, None].expand(-1, width), -torch.ones(height, width)], -1)
    directions = torch.nn.functional.normalize(local.reshape(-1, 3) @ pose[:, :3].T, dim=-1)
    return pose[:, 3].expand_as(directions).contiguous(), directions, width


def start_cloud(folder: Path, frame: Frame, unit: float) -> GaussianCloud:
    """The Gaussians at the SfM points, as training on real scenes as published starts."""
    columns = read_ply(folder / "sparse_pc.ply").columns
    points = torch.from_numpy(np.stack([columns[name] for name in "xyz"], -1).astype(np.float32))
    colors = torch.from_numpy(np.stack([columns[name] for name in ("red", "green", "blue")], -1) / np.float32(255))
    return GaussianCloud(StartPoints(frame(points), colors), unit, density=1.0)


def ways(unit: float, slab: int) -> dict[str, CastSettings]:
    """What is compared, by name; the first one is what the others are held against."""
    uniform = CastSettings(STEP * unit, THRESHOLD / unit, 0.5, 1e-3, slab)
    bounded = uniform._replace(max_step=BOUND * STEP * unit)
    return {
        "uniform": uniform,
        "grows with t": bounded._replace(step_growth=GROWTH),
        "grows as T falls": bounded._replace(transmittance_exponent=EXPONENT),
        "both, as published": bounded._replace(step_growth=GROWTH, transmittance_exponent=EXPONENT),
    }


def decibels(image: Tensor, truth: Tensor) -> float:
    return -10 * float(torch.log10((image - truth).square().mean()))


def main(options: Options) -> None:
    """Run and print."""
    scene = json.loads((options.scene / "transforms.json").read_text())
    frame = frame_of(scene, options.transforms)
    unit = 2 / 3  # nerfstudio's scene box is +-1
    with torch.no_grad():
        torch.manual_seed(0)
        if options.ply is None:
            cloud = start_cloud(options.scene, frame, unit)
        else:
            cloud = read_cloud(options.ply)
        gaussians = cloud.gaussians()
        colors = (0.5 + 0.28209479177387814 * cloud.params["sh_base"]).clamp(0, 1)  # without view dependence
    origins, directions, width = rays_of(scene, pose_of(scene, options.view, frame), options.downscale)
    nears, fars = torch.full((len(origins),), NEAR * unit), torch.full((len(origins),), torch.inf)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*gaussians, colors)]

    def render(settings: CastSettings) -> Tensor:
        rays = (origins, directions, nears, fars)
        return cast(Gaussians(*leaves[:4]), leaves[4], Rays(*rays, width), settings).rgb

    compared = ways(unit, options.slab)
    clocks = {name: Clock() for name in compared}
    late = {name: settings._replace(transmittance_threshold=LATE) for name, settings in compared.items()}
    fine = late["uniform"]._replace(step=compared["uniform"].step / options.finer, samples_per_slab=128)
    with torch.no_grad():
        truth = render(fine)
        images = {name: render(settings) for name, settings in late.items()}
    for settings in compared.values():
        torch.autograd.grad(render(settings).sum(), leaves)  # compiles
    for _ in range(options.rounds):
        for name, settings in compared.items():
            clocks[name].measure(
                lambda settings=settings: render(settings), lambda rgb: torch.autograd.grad(rgb.sum(), leaves)
            )
    first, rows = clocks["uniform"], []
    for name, clock in clocks.items():
        ratios = (
            statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            for ours, theirs in ((clock.cpu_forward, first.cpu_forward), (clock.cpu_both, first.cpu_both))
        )
        rows.append(
            {
                "step": name,
                "forward ms": round(statistics.median(clock.cpu_forward), 1),
                "of uniform": f"{next(ratios):.2f}",
                "both ms": round(statistics.median(clock.cpu_both), 1),
                "of uniform ": f"{next(ratios):.2f}",
                "PSNR dB": round(decibels(images[name], truth), 1),
            }
        )
    print(f"{options.scene.name}: {len(colors)} Gaussians, {width} x {len(origins) // width} rays, n = {options.slab}")
    print_table(rows)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "machine": {"machine": platform.machine(), "threads": num_threads(), "torch": torch.__version__},
            "scene": options.scene.name,
            "gaussians": len(colors),
            "rays": [width, len(origins) // width],
            "settings": {name: settings._asdict() for name, settings in compared.items()},
            "table": rows,
            "rounds_ms": {name: {"forward": c.cpu_forward, "both": c.cpu_both} for name, c in clocks.items()},
        }
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
