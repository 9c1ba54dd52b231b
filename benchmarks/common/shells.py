"""Scenes for the ray caster on a CPU: bumpy shells of Gaussians seen from outside, cast forward and backward."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.timing import Clock, least_cpu_milliseconds
from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast, whitening_matrices
from raygauss_ns.casting.cpu.bvh import build_bvh

DISTANCE, FIELD_OF_VIEW = 3.0, 50.0
"""Of the camera from the shell's centre (its radius is 1), and in degrees."""
THRESHOLD = 0.1
"""Density cutoff, in 1 / scene units."""
STEPS_PER_DIAGONAL = 512
"""Samples on the diagonal of a cube with sides of 2.4, which holds the shell."""
COUNTED_RAYS = 1500
"""Rays on which useful evaluations are counted."""


@dataclass
class Shell:
    """Gaussians on a bumpy sphere, flat along its normals."""

    name: str
    gaussians: Gaussians
    colors: Tensor
    leaves: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.leaves = [tensor.requires_grad_() for tensor in (*self.gaussians, self.colors)]


def shell(name: str, count: int, width: float = 1.0, seed: int = 0) -> Shell:
    """A shell whose scales are 0.55 `width` spacings along the surface, and a quarter of that across it."""
    random = np.random.default_rng(seed)
    index = np.arange(count) + 0.5
    polar, azimuth = np.arccos(1 - 2 * index / count), np.pi * (1 + 5**0.5) * index
    normals = np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], 1)
    bumps = 0.08 * np.prod(np.sin(normals * [5, 7, 6]), axis=1)
    means = normals * (1 + bumps + 0.01 * random.standard_normal(count))[:, None]
    scales = 0.55 * width * math.sqrt(4 * math.pi / count) * np.exp(0.3 * random.standard_normal((count, 3)))
    scales[:, 2] *= 0.25
    # The shortest rotation that takes the z axis to the normal.
    quats = np.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0], np.zeros(count)], 1)
    densities = 0.03 / scales[:, 2] * np.exp(0.5 * random.standard_normal(count))
    arrays = (means, scales, quats, densities, random.random((count, 3)))
    tensors = [torch.tensor(array, dtype=torch.float32) for array in arrays]
    return Shell(name, Gaussians(*tensors[:4]), tensors[4])


def camera_rays(pixels: int) -> tuple[Tensor, Tensor]:
    """Origins and directions [pixels^2, 3] of a pinhole camera whose viewing direction is along no axis."""
    focal = pixels / 2 / math.tan(math.radians(FIELD_OF_VIEW / 2))
    rows, columns = torch.meshgrid(torch.arange(pixels) + 0.5, torch.arange(pixels) + 0.5, indexing="ij")
    local = torch.stack([(columns - pixels / 2) / focal, (pixels / 2 - rows) / focal, -torch.ones_like(rows)], -1)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    directions = torch.nn.functional.normalize(local.reshape(-1, 3) @ rotation.T, dim=-1)
    return (rotation[:, 2] * DISTANCE).expand_as(directions).contiguous(), directions


def cast_settings(slab: int) -> CastSettings:
    """Uniform steps, `slab` samples per slab, midpoint samples."""
    return CastSettings(
        step=2.4 * 3**0.5 / STEPS_PER_DIAGONAL,
        density_threshold=THRESHOLD,
        sample_offset=0.5,
        transmittance_threshold=1e-3,
        samples_per_slab=slab,
    )


def useful_evaluations(scene: Shell, origins: Tensor, directions: Tensor, settings: CastSettings) -> float:
    """Number of samples inside a support that are not occluded, estimated from `COUNTED_RAYS` of the rays."""
    chosen = torch.linspace(0, len(origins) - 1, min(COUNTED_RAYS, len(origins))).long()
    means, scales, quats, densities = (tensor.detach() for tensor in scene.gaussians)
    whitenings = whitening_matrices(scales, quats)
    reach = 2 * torch.log(densities / THRESHOLD)
    total = 0
    for origin, direction in zip(origins[chosen], directions[chosen], strict=True):
        u, b = torch.einsum("nij,nj->ni", whitenings, origin - means), whitenings @ direction
        bb = (b * b).sum(-1)
        closest = -(u * b).sum(-1) / bb
        height = ((u + closest[:, None] * b) ** 2).sum(-1)
        hit = height < reach
        half = torch.sqrt((reach[hit] - height[hit]) / bb[hit])
        first = ((closest[hit] - half) / settings.step - settings.sample_offset).ceil().long()
        last = ((closest[hit] + half) / settings.step - settings.sample_offset).floor().long()
        spans = (last - first + 1).clamp_min(0)
        samples = torch.repeat_interleave(first - (spans.cumsum(0) - spans), spans) + torch.arange(int(spans.sum()))
        which = torch.repeat_interleave(torch.arange(len(spans)), spans)
        t = (samples + settings.sample_offset) * settings.step
        f = densities[hit][which] * torch.exp(
            -(height[hit][which] + bb[hit][which] * (t - closest[hit][which]) ** 2) / 2
        )
        if len(samples):
            depth = torch.zeros(int(samples.max()) + 2).index_add_(0, samples + 1, f * settings.step)
            reached = torch.exp(-depth.cumsum(0))[samples] > settings.transmittance_threshold
            total += int(reached.sum())
    return total * len(origins) / len(chosen)


@dataclass
class Case:
    """Rays cast into a shell, and the times measured."""

    name: str
    gaussians: int
    rays: int
    forward: Callable[[], Any]
    backward: Callable[[Any], None]
    evaluations: float = math.nan
    clock: Clock = field(default_factory=Clock)

    def row(self, limit: dict[str, float]) -> dict[str, Any]:
        """The case as a row of the table."""
        forward, both = min(self.clock.cpu_forward), min(self.clock.cpu_both)
        rate_both = self.evaluations / (1e-3 * both)
        return {
            "case": self.name,
            "forward ms": round(forward, 1),
            "both ms": round(both, 1),
            "median": round(statistics.median(self.clock.cpu_both), 1),
            "wall ms": round(min(self.clock.wall_both), 1),
            "Mrays/s": round(self.rays / both / 1e3, 2),
            "Meval": f"{self.evaluations / 1e6:.1f}",
            "Meval/s": f"{rate_both / 1e6:.0f}",
            "of limit": f"{rate_both / limit['accumulations']:.1%}",
        }


def kernel_case(
    name: str, scene: Shell, pixels: int, settings: CastSettings, shuffle: bool, backend: Any = "cpu"
) -> Case:
    """This project's caster on a shell; the gradient of every pixel's colour is one."""
    origins, directions = camera_rays(pixels)
    if shuffle:
        order = torch.randperm(len(origins), generator=torch.Generator().manual_seed(0))
        origins, directions = origins[order], directions[order]
    nears, fars = torch.zeros(len(origins)), torch.full((len(origins),), torch.inf)
    rays = Rays(origins, directions, nears, fars, 0 if shuffle else pixels)

    def forward() -> Tensor:
        gaussians, colors = Gaussians(*scene.leaves[:4]), scene.leaves[4]
        return cast(gaussians, colors, rays, settings, backend=backend).rgb

    def backward(rgb: Tensor) -> None:
        torch.autograd.grad(rgb.sum(), scene.leaves)

    evaluations = useful_evaluations(scene, origins, directions, settings)
    return Case(name, len(scene.colors), len(origins), forward, backward, evaluations)


def build_time(scene: Shell) -> float:
    """CPU time to build the BVH (milliseconds): the smallest of 5 measurements."""
    means, scales, quats, densities = (tensor.detach() for tensor in scene.gaussians)
    whitenings = whitening_matrices(scales, quats)
    arrays = [tensor.numpy() for tensor in (means, whitenings, densities, scene.colors.detach())]
    return least_cpu_milliseconds(lambda: build_bvh(*arrays, THRESHOLD))
