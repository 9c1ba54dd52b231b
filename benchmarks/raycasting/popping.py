"""A slow turn around Gaussians, splatted and ray cast: what changes from one frame to the next."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from common.montage import montage
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ns_support.lenses.lens import LensType, make_lens
from raygauss_ns.casting import CastSettings
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.initialization import StartPoints
from raygauss_ns.gaussians.ply_formats import splat_columns
from raygauss_ns.gaussians.renderer import image_rays, render
from raygauss_ns.splatting import Splats, SplatView, splat
from raygauss_ns.splatting.files import splats_of

STEP, FRAMES = 0.2, 150
"""Degrees that the camera turns from one frame to the next, and number of frames."""
SIDE, FOCAL = 240, 280.0
"""Height and width of the images and focal length of the cameras (pixels)."""
_PALETTE = ("e4572e", "1b998b", "f2b134", "8e4a8c", "2f4858", "c5d86d")


class Subject(NamedTuple):
    """What is looked at.

    Attributes:
        name: of it.
        cloud: the Gaussians.
        settings: how rays are sampled.
        distance: of the camera from the origin (scene units).
        elevation: of the camera (degrees).
    """

    name: str
    cloud: GaussianCloud
    settings: CastSettings
    distance: float
    elevation: float


class Turn(NamedTuple):
    """A turn's frames [F, H, W, 3] in [0, 1], splatted and ray cast."""

    splatted: NDArray[np.float32]
    cast: NDArray[np.float32]


def crossing_discs(count: int = 24, seed: int = 0) -> Subject:
    """A made set of dense, flat Gaussians in random directions whose centres are close together: they cross."""
    generator = torch.Generator().manual_seed(seed)
    centers = 0.12 * torch.randn(count, 3, generator=generator)
    colors = torch.tensor(
        [[int(_PALETTE[i % len(_PALETTE)][k : k + 2], 16) / 255 for k in (0, 2, 4)] for i in range(count)]
    )
    cloud = GaussianCloud(StartPoints(centers, colors), unit=1.0, density=100.0, num_lobes=0)
    with torch.no_grad():
        cloud.params["scales"][:] = torch.tensor([0.22, 0.22, 0.01]).log()
        cloud.params["quats"][:] = normalize(torch.randn(count, 4, generator=generator), dim=-1)
    settings = CastSettings(step=0.0025, density_threshold=0.1)
    return Subject("a made set of crossing discs", cloud, settings, 2.0, 15.0)


def pose_at(azimuth: float, elevation: float, distance: float) -> Tensor:
    """[3, 4] of a camera that looks at the origin, z up; angles in degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    back = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = torch.tensor([-math.sin(a), math.cos(a), 0.0])
    return torch.stack([right, torch.linalg.cross(back, right), back, distance * back], 1)


@torch.no_grad()
def turn(subject: Subject, frames: int = FRAMES) -> Turn:
    """Render the same Gaussians both ways, before white."""
    lens = make_lens(LensType.PERSPECTIVE, (FOCAL, FOCAL), (SIDE / 2, SIDE / 2), (SIDE, SIDE))
    gaussians, basis = subject.cloud.gaussians(), subject.cloud.color_basis()
    splats: Splats = splats_of(splat_columns(subject.cloud, subject.settings.density_threshold))
    found: tuple[list[Tensor], list[Tensor]] = [], []
    for i in range(frames):
        pose = pose_at(STEP * i, subject.elevation, subject.distance)
        view = SplatView(pose, (FOCAL, FOCAL), (SIDE / 2, SIDE / 2), (SIDE, SIDE))
        found[0].append(splat(splats, view, torch.ones(3)))
        out = render(gaussians, basis, image_rays(lens, pose, near=0.05), subject.settings)
        found[1].append((out.rgb + out.transmittance[:, None]).view(SIDE, SIDE, 3))
    return Turn(*(torch.stack(images).clamp(0, 1).numpy() for images in found))


def changes(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """[F - 1, H, W] largest change of a pixel's three colours from a frame to the next, in 1/255."""
    return 255 * np.abs(np.diff(frames, axis=0)).max(axis=-1)


def rows_of(subject: Subject, shown: Turn) -> list[dict[str, object]]:
    """A row for splatting and one for ray casting: how much changes between neighbouring frames (1/255)."""
    rows: list[dict[str, object]] = []
    for name, frames in zip(("splatted", "ray cast"), shown, strict=True):
        changed = changes(frames)
        means = changed.mean(axis=(1, 2))
        rows.append(
            {
                "Gaussians": subject.name,
                "rendered": name,
                "pairs of frames": len(means),
                "mean": f"{means.mean():.2f}",
                "median pair's mean": f"{np.median(means):.2f}",
                "worst pair's mean": f"{means.max():.2f}",
                "worst / median": f"{means.max() / np.median(means):.1f}",
                "largest of a pixel": f"{changed.max():.0f}",
            }
        )
    return rows


def picture(shown: Turn) -> Image.Image:
    """The two frames between which splatting changes most, and the difference, splatted above and ray cast below."""
    worst = int(changes(shown.splatted).mean(axis=(1, 2)).argmax())
    rows = []
    for name, frames in zip(("splatted", "ray cast"), shown, strict=True):
        change = np.clip(4 * changes(frames)[worst], 0, 255)
        images = [np.round(255 * frames[worst + i]).astype(np.uint8) for i in (0, 1)]
        images.append(np.repeat(255 - change[..., None], 3, axis=-1).astype(np.uint8))
        captions = [f"{name}, frame {worst}", f"frame {worst + 1}, {STEP} degrees on", "difference, 4 times"]
        rows.append((images, captions))
    return montage(rows)
