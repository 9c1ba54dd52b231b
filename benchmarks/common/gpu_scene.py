"""Scenes for the GPU kernels: a bumpy shell of flat Gaussians or those of a checkpoint, and the Blender scenes' camera.

Needs no nerfstudio.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from raygauss_ns.casting import CastSettings, Gaussians, Rays

SETTINGS = CastSettings(step=0.0025, density_threshold=0.1, sample_offset=0.5, transmittance_threshold=1e-3)
CAMERA_ANGLE_X = 0.6911
"""Horizontal field of view of the Blender scenes, in radians."""
CAMERA_DISTANCE = 4.0
"""Distance of the camera from the shell's centre (scene units)."""


def shell_scene(count: int, device: str, seed: int = 0) -> tuple[Gaussians, Tensor]:
    """Flat Gaussians on a bumpy sphere of radius about 1, each with an optical depth of about 1, and their colours."""
    generator = torch.Generator().manual_seed(seed)
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    bumps = 1 + 0.08 * torch.sin(9 * normals).prod(-1, keepdim=True) + 0.02 * torch.rand(count, 1, generator=generator)
    width = 0.7 * math.sqrt(4 * math.pi / count)
    thickness = max(0.25 * width, 0.003)
    sizes = torch.tensor([width, width, thickness]) * (0.6 + 0.8 * torch.rand(count, 3, generator=generator))
    # The rotation that turns z into the normal: halfway between the two, by pi.
    axis = normals + torch.tensor([0.0, 0.0, 1.0 + 1e-4])
    quats = torch.cat([torch.zeros(count, 1), torch.nn.functional.normalize(axis, dim=-1)], dim=1)
    densities = (0.2 + 0.6 * torch.rand(count, generator=generator)) / thickness
    scene = (normals * bumps, sizes, quats, densities, torch.rand(count, 3, generator=generator))
    means, scales, quats, densities, colors = (tensor.to(device) for tensor in scene)
    return Gaussians(means, scales, quats, densities), colors


def image_rays(side: int, device: str) -> Rays:
    """A square image of side x side rays, row by row."""
    half = math.tan(CAMERA_ANGLE_X / 2)
    steps = ((torch.arange(side, device=device) + 0.5) / side * 2 - 1) * half
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    directions = torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3), dim=-1)
    origins = torch.tensor([[0.0, 0.0, -CAMERA_DISTANCE]], device=device).repeat(side * side, 1)
    nears = torch.full((side * side,), 0.05, device=device)
    return Rays(origins, directions, nears, torch.full_like(nears, torch.inf), side)


def random_rays(count: int, device: str) -> Rays:
    """Incoherent rays: random origins around the scene, random directions into it."""
    generator = torch.Generator().manual_seed(1)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1) * CAMERA_DISTANCE
    directions = torch.nn.functional.normalize(torch.rand(count, 3, generator=generator) - 0.5 - origins, dim=-1)
    nears = torch.full((count,), 0.05)
    rays = (origins, directions, nears, torch.full_like(nears, torch.inf))
    return Rays(*(tensor.to(device) for tensor in rays))


def trained_gaussians(path: Path) -> tuple[Gaussians, Tensor]:
    """The Gaussians of a checkpoint of `raygauss`, and their colours without view dependence."""
    state = torch.load(path, map_location="cpu", weights_only=True)["pipeline"]
    params = {name.split("params.")[1]: value for name, value in state.items() if "cloud.params." in name}
    gaussians = Gaussians(params["means"], params["scales"].exp(), params["quats"], params["densities"])
    return gaussians, (0.5 + 0.28 * params["sh_base"]).clamp(0, 1)
