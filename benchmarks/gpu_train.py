"""Training on a Blender-format scene with `raygauss`'s own modules and nothing of nerfstudio: part of `gpu.py`.

Whole images, one a step; the published recipe with the model's defaults. Evaluated on the test split over white.
Needs scipy and gsplat beside torch, as the modules do, and Pillow for the images.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ns_support.lenses.lens import Lens, LensType, make_lens
from raygauss_ns.casting import CastSettings, Rays
from raygauss_ns.color.harmonics import SH_DEGREE
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.density.control import DensityControl, DensitySchedule
from raygauss_ns.gaussians.initialization import random_points
from raygauss_ns.gaussians.losses import ISO_WEIGHT_SYNTHETIC, isotropy_loss, photometric_loss
from raygauss_ns.gaussians.maintenance import Maintenance, MaintenanceSettings
from raygauss_ns.gaussians.projection import View
from raygauss_ns.gaussians.renderer import image_rays, render
from raygauss_ns.gaussians.schedules import DEFAULT_RATES, active_colors, decayed, stretched

BOX = torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]])
DENSITY_THRESHOLD = 0.1
NEAR = 0.05


class Views(NamedTuple):
    """Images of one split. `images` uint8 [M, H, W, 4]; `poses` [M, 3, 4] camera to world; `lens` of all of them."""

    images: Tensor
    poses: Tensor
    lens: Lens

    def target(self, index: int) -> Tensor:
        """An image over white, [H, W, 3]."""
        rgba = self.images[index].float() / 255
        return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]

    def rays(self, index: int) -> Rays:
        """Through an image's pixels."""
        return image_rays(self.lens, self.poses[index], NEAR)

    @property
    def world_to_cameras(self) -> Tensor:
        """[M, 3, 4] the inverse poses."""
        rotations = self.poses[:, :, :3].transpose(1, 2)
        return torch.cat([rotations, -rotations @ self.poses[:, :, 3:]], dim=2)


def load_views(folder: Path, split: str, device: str) -> Views:
    """Read transforms_<split>.json and its images."""
    meta = json.loads((folder / f"transforms_{split}.json").read_text())
    images, poses = [], []
    for frame in meta["frames"]:
        path = folder / frame["file_path"]
        image = Image.open(path if path.suffix else path.with_suffix(".png")).convert("RGBA")
        images.append(torch.from_numpy(np.array(image)))
        poses.append(torch.tensor(frame["transform_matrix"])[:3])
    stacked = torch.stack(images).to(device)
    height, width = stacked.shape[1:3]
    focal = 0.5 * width / math.tan(0.5 * meta["camera_angle_x"])
    lens = make_lens(LensType.PERSPECTIVE, (focal, focal), (width / 2, height / 2), (width, height))
    return Views(stacked, torch.stack(poses).to(device), lens)


class Trainer:
    """The cloud, its optimisers and its maintenance."""

    def __init__(self, options: argparse.Namespace, views: Views) -> None:
        self.options, self.views = options, views
        self.steps = options.steps
        count = 500 if options.small else 30_000
        self.cloud = GaussianCloud(random_points(count, BOX), 1.0, 3.0, 0.5).to(options.device)
        centers = views.poses[:, :, 3]
        self.extent = 1.1 * float((centers - centers.mean(0)).norm(dim=-1).max())
        self.optimizers = {
            name: torch.optim.Adam([parameter], lr=DEFAULT_RATES[name][0], eps=1e-15)
            for name, parameter in self.cloud.params.items()
        }
        first, last, every = (stretched(step, self.steps) for step in (500, 15_000, 300))
        schedule = DensitySchedule(first, last, max(every, 50), 4e-5, 6_000_000)
        self.control = DensityControl(count, schedule, DENSITY_THRESHOLD).to(options.device)
        settings: CastSettings = options.settings
        self.settings = settings._replace(density_threshold=DENSITY_THRESHOLD)
        lenses = [views.lens] * len(views.poses)
        self.maintenance = Maintenance(
            self.cloud, self.control, views.world_to_cameras, lenses, self.extent, MaintenanceSettings()
        )

    def render(self, views: Views, index: int, step: int) -> Tensor:
        """An image over white, [H, W, 3]."""
        active = active_colors(step, stretched(1000, self.steps), SH_DEGREE)
        basis, rays = self.cloud.color_basis().active(*active), views.rays(index)
        out = render(self.cloud.gaussians(), basis, rays, self.settings, backend=self.options.backend)
        return (out.rgb + out.transmittance[:, None]).view(*views.images.shape[1:3], 3)

    def step(self, step: int) -> Tensor:
        """One image; returns the loss."""
        for name, optimizer in self.optimizers.items():
            rate = decayed(DEFAULT_RATES[name], step / self.steps)
            optimizer.param_groups[0]["lr"] = rate * (self.extent if name == "means" else 1.0)
            optimizer.zero_grad(set_to_none=True)
        index = int(torch.randint(len(self.views.images), ()))
        loss = photometric_loss(self.render(self.views, index, step), self.views.target(index), ssim_lambda=0.2)
        (loss + ISO_WEIGHT_SYNTHETIC * isotropy_loss(self.cloud.params["scales"])).backward()
        means = self.cloud.params["means"]
        if step <= self.control.schedule.last and means.grad is not None:
            height, width = self.views.images.shape[1:3]
            view = View(self.views.world_to_cameras[index], self.views.lens, (0, 0, height, width))
            self.control.observe(means.grad, means, 1.0, view)
            self.control.add_observed(self.maintenance.processes)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.maintenance.after_update(range(step, step + 1), self.optimizers, seed=0)
        return loss.detach()


@torch.no_grad()
def evaluate(trainer: Trainer, views: Views) -> float:
    """Mean PSNR over a split, in dB."""
    errors = [
        (trainer.render(views, i, trainer.steps).clamp(0, 1) - views.target(i)).square().mean()
        for i in range(len(views.images))
    ]
    return float((-10 * torch.log10(torch.stack(errors))).mean())


def train_scene(options: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate, and say how long it took."""
    torch.manual_seed(0)
    cuda = options.device == "cuda"
    trainer = Trainer(options, load_views(options.train, "train", options.device))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    clock = time.perf_counter()
    loss = torch.zeros(())
    for step in range(options.steps):
        loss = trainer.step(step)
        if step % 1000 == 999 or step == options.steps - 1:
            seconds = time.perf_counter() - clock
            print(
                f"step {step + 1}: loss {float(loss):.4f}, {len(trainer.cloud)} Gaussians, {seconds:.0f} s", flush=True
            )
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - clock
    psnr = evaluate(trainer, load_views(options.train, "test", options.device))
    result = {
        "scene": options.train.name,
        "steps": options.steps,
        "seconds": seconds,
        "psnr": psnr,
        "gaussians": len(trainer.cloud),
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if cuda else math.nan,
    }
    print(
        f"{result['scene']}: {psnr:.2f} dB on the test split after {seconds:.0f} s, peak {result['peak_mib']:.0f} MiB"
    )
    return result
