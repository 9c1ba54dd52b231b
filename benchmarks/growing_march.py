"""What the march with a growing step costs where the step does not grow, against the march for uniform steps.

    python benchmarks/growing_march.py [CHECKPOINT]

With step_growth = transmittance_exponent = 0 both compute the same, so that one of them could go. Only the forward and
the backward march are timed, without colours and autograd, on shells of Gaussians and, if a checkpoint of `raygauss` is
given, on its Gaussians; CPU time, alternating, the least of several rounds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common.gpu_scene import trained_gaussians
from common.report import print_table, write_json
from common.shells import THRESHOLD, camera_rays, cast_settings, shell

from ns_support.kernels.arrays import float_array
from raygauss_ns.casting import CastSettings, Gaussians, Rays
from raygauss_ns.casting.cpu import march, march_growing
from raygauss_ns.casting.cpu.autograd import ray_arrays
from raygauss_ns.casting.cpu.bvh import build_bvh
from raygauss_ns.casting.cpu.whitening import whitenings_of
from raygauss_ns.casting.types import far_ends, sample_counts

COUNTS = (2_000, 20_000, 100_000)
"""Gaussians of the shells."""


class Scene(NamedTuple):
    """Gaussians with one colour each, and how they are sampled."""

    name: str
    gaussians: Gaussians
    colors: torch.Tensor
    settings: CastSettings


def trained(path: Path) -> Scene:
    """The Gaussians of a checkpoint, in their colour without view dependence."""
    gaussians, colors = trained_gaussians(path)
    settings = CastSettings(0.01, THRESHOLD, 0.5, 1e-3, samples_per_slab=32)
    return Scene(path.stem, gaussians, colors, settings)


def measure(scene: Scene, pixels: int, rounds: int) -> dict[str, Any]:
    """A row of the table."""
    means, scales, quats, densities = map(float_array, scene.gaussians)
    threshold = scene.settings.density_threshold
    bvh = build_bvh(means, whitenings_of(scales, quats), densities, float_array(scene.colors), threshold)
    origins, directions = camera_rays(pixels)
    nears = torch.zeros(len(origins))
    fars = torch.full_like(nears, torch.inf)
    rays = Rays(origins, directions, nears, fars, pixels)
    uniform = ray_arrays(rays, sample_counts(nears, fars, scene.settings))
    growing = ray_arrays(rays, far_ends(nears, fars, scene.settings)[1])
    cotangent = np.ones((len(origins), 5), np.float32)
    least: dict[str, list[float]] = {}
    outputs = {}
    for turn in range(rounds + 1):  # the first one compiles
        for name, module, arrays in (("uniform", march, uniform), ("growing", march_growing, growing)):
            begin = time.process_time()
            out = module.cast_forward(bvh, arrays, scene.settings)
            middle = time.process_time()
            module.cast_backward(bvh, arrays, scene.settings, out, cotangent, len(means))
            times = [1e3 * (middle - begin), 1e3 * (time.process_time() - middle)]
            outputs[name] = out
            if turn > 0:
                least[name] = [min(pair) for pair in zip(least.get(name, times), times, strict=True)]
    (forward, backward), (forward_growing, backward_growing) = least["uniform"], least["growing"]
    return {
        "scene": scene.name,
        "Gaussians": len(means),
        "forward ms": round(forward, 1),
        "growing": f"{forward_growing / forward:.3f}",
        "backward ms": round(backward, 1),
        "growing, backward": f"{backward_growing / backward:.3f}",
        "colour differs by": f"{np.abs(outputs['uniform'][:, :3] - outputs['growing'][:, :3]).max():.1e}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="of `raygauss`, whose Gaussians are cast too")
    parser.add_argument("--pixels", type=int, default=200, help="on a side of the image")
    parser.add_argument("--rounds", type=int, default=8, help="of each march")
    parser.add_argument("--json", type=Path, help="also write the table there")
    given = parser.parse_args()
    scenes = []
    for count in COUNTS:
        made = shell("shell", count)
        gaussians = Gaussians(*(tensor.detach() for tensor in made.gaussians))
        scenes.append(Scene("shell", gaussians, made.colors.detach(), cast_settings(32)))
    if given.checkpoint is not None:
        scenes.append(trained(given.checkpoint))
    rows = [measure(scene, given.pixels, given.rounds) for scene in scenes]
    print_table(rows)
    write_json(given.json, rows)


if __name__ == "__main__":
    main()
