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

from ns_support.lenses.lens import LensType, make_lens
from raygauss_ns.casting import CastSettings, cast
from raygauss_ns.color.api import view_colors
from raygauss_ns.color.harmonics import SH_DEGREE
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.densification import DensityControl, DensitySchedule
from raygauss_ns.gaussians.initialization import random_points
from raygauss_ns.gaussians.projection import View, smallest_resolved_scale
from raygauss_ns.gaussians.regularization import isotropy_loss
from raygauss_ns.gaussians.schedules import active_colors, stretched
from raygauss_ns.ssim.api import structural_similarity

BOX = torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]])
LEARNING_RATES = {
    "means": (1.6e-4, 1.6e-6),
    "scales": (0.0115, 0.0115),
    "quats": (1e-3, 1e-3),
    "densities": (0.2, 0.03),
    "sh_base": (1e-2, 1e-3),
    "sh_rest": (2.5e-3, 2.6e-4),
    "sg_amplitudes": (2.5e-3, 3.6e-4),
    "sg_sharpness": (0.045, 0.045),
    "sg_axes": (3e-3, 3e-3),
}
"""At the first and the last step; of the means, times the camera extent."""
DENSITY_THRESHOLD = 0.1
ISO_WEIGHT = 2.5e-7


class Views(NamedTuple):
    """Images of one split. `images` uint8 [M, H, W, 4]; `poses` [M, 3, 4] camera to world; `focal` in pixels."""

    images: Tensor
    poses: Tensor
    focal: float

    def target(self, index: int) -> Tensor:
        """An image over white, [H, W, 3]."""
        rgba = self.images[index].float() / 255
        return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]

    def rays(self, index: int) -> tuple[Tensor, Tensor]:
        """Origin [3] and unit directions [H W, 3] of an image's pixels."""
        height, width = self.images.shape[1:3]
        device = self.poses.device
        y, x = torch.meshgrid(
            torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
        )
        local = torch.stack([(x - width / 2) / self.focal, -(y - height / 2) / self.focal, -torch.ones_like(x)], dim=-1)
        directions = torch.nn.functional.normalize(local.reshape(-1, 3) @ self.poses[index, :, :3].T, dim=-1)
        return self.poses[index, :, 3], directions


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
    focal = 0.5 * stacked.shape[2] / math.tan(0.5 * meta["camera_angle_x"])
    return Views(stacked, torch.stack(poses).to(device), focal)


class Trainer:
    """The cloud, its optimisers and its density control."""

    def __init__(self, options: argparse.Namespace, views: Views) -> None:
        self.options, self.views = options, views
        self.steps = options.steps
        count = 500 if options.small else 30_000
        self.cloud = GaussianCloud(random_points(count, BOX), 1.0, 3.0, 0.5).to(options.device)
        centers = views.poses[:, :, 3]
        self.extent = 1.1 * float((centers - centers.mean(0)).norm(dim=-1).max())
        self.optimizers = {
            name: torch.optim.Adam([parameter], lr=LEARNING_RATES[name][0], eps=1e-15)
            for name, parameter in self.cloud.params.items()
        }
        first, last, every = (stretched(step, self.steps) for step in (500, 15_000, 300))
        schedule = DensitySchedule(first, last, max(every, 50), 4e-5, 6_000_000)
        self.control = DensityControl(count, schedule, DENSITY_THRESHOLD).to(options.device)
        settings: CastSettings = options.settings
        self.settings = settings._replace(density_threshold=DENSITY_THRESHOLD)
        height, width = views.images.shape[1:3]
        rotations = views.poses[:, :, :3].transpose(1, 2)
        self.world_to_cameras = torch.cat([rotations, -rotations @ views.poses[:, :, 3:]], dim=2)
        focal, center = (views.focal, views.focal), (width / 2, height / 2)
        self.lens = make_lens(LensType.PERSPECTIVE, focal, center, (width, height))
        self.floor = torch.zeros(0)

    def render(self, views: Views, index: int, step: int) -> Tensor:
        """An image over white, [H, W, 3]."""
        height, width = views.images.shape[1:3]
        center, directions = views.rays(index)
        gaussians = self.cloud.gaussians()
        basis = self.cloud.color_basis().active(*active_colors(step, stretched(1000, self.steps), SH_DEGREE))
        colors = view_colors(basis, gaussians.means, center)
        nears = torch.full_like(directions[:, 0], 0.05)
        out = cast(
            gaussians,
            colors,
            center.expand_as(directions),
            directions,
            nears,
            torch.full_like(nears, torch.inf),
            self.settings,
            image_width=width,
            backend=self.options.backend,
        )
        return (out.rgb + out.transmittance[:, None]).view(height, width, 3)

    def step(self, step: int) -> Tensor:
        """One image; returns the loss."""
        for name, optimizer in self.optimizers.items():
            first, last = LEARNING_RATES[name]
            rate = first * (last / first) ** (step / self.steps)
            optimizer.param_groups[0]["lr"] = rate * (self.extent if name == "means" else 1.0)
            optimizer.zero_grad(set_to_none=True)
        index = int(torch.randint(len(self.views.images), ()))
        image, target = self.render(self.views, index, step), self.views.target(index)
        loss = 0.8 * (image - target).abs().mean() + 0.2 * (1 - structural_similarity(image, target))
        (loss + ISO_WEIGHT * isotropy_loss(self.cloud.params["scales"])).backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
        self._control(step, index)
        return loss.detach()

    @torch.no_grad()
    def _control(self, step: int, index: int) -> None:
        params = self.cloud.params
        params["densities"].clamp_(min=0.0)
        if step <= self.control.schedule.last and params["means"].grad is not None:
            height, width = self.views.images.shape[1:3]
            view = View(self.world_to_cameras[index], self.lens, (0, 0, height, width))
            self.control.record(params["means"].grad, params["means"], 1.0, view)
        if step > 0 and step % 100 == 0 and self.control.prune(params, self.optimizers) == 0:
            raise RuntimeError(f"no Gaussian is left at step {step}")
        if self.control.is_due(step):
            self.control.densify(params, self.optimizers, self.extent, seed=step)
        if len(self.floor) != len(params["means"]) or step % 100 == 0:
            lenses = [self.lens] * len(self.world_to_cameras)
            self.floor = smallest_resolved_scale(params["means"], self.world_to_cameras, lenses).log()
        torch.maximum(params["scales"], self.floor[:, None], out=params["scales"])


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
