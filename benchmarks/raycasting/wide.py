"""Training and held-out images of the demo's shapes through lenses that see more than half of all directions."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common.montage import montage
from common.training import configure, train
from numpy.typing import NDArray
from PIL import Image

from ns_support.lenses.lens import Lens, LensType, in_world, make_lens

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from make_scene import color_and_hit, distance_to_all
from shapes import SCENE

SAMPLES = 2
"""Rays along each side of a pixel."""
_CLEAR = 0.22
"""Distance that cameras keep from all shapes (scene units)."""


class WideLens(NamedTuple):
    """A kind of camera.

    Attributes:
        name: of its picture.
        model: nerfstudio's name.
        lens: its exact rays.
    """

    name: str
    model: str
    lens: Lens


LENSES = {
    # Equidistant, half a turn from the left edge to the right; the corners see behind the camera.
    "fisheye": WideLens(
        "fisheye",
        "OPENCV_FISHEYE",
        make_lens(LensType.FISHEYE, (200 / math.pi, 200 / math.pi), (100.0, 100.0), (200, 200)),
    ),
    "panorama": WideLens(
        "panorama", "EQUIRECTANGULAR", make_lens(LensType.EQUIRECTANGULAR, (144.0, 144.0), (144.0, 72.0), (288, 144))
    ),
}


def cameras_among_shapes(count: int, seed: int) -> list[NDArray[np.float64]]:
    """Camera-to-world matrices [4, 4] between and just above the shapes on the dish, upright, near its middle."""
    random, poses = np.random.default_rng(seed), []
    while len(poses) < count:
        place = random.uniform([-0.7, -0.7, -0.15], [0.7, 0.7, 0.55])
        clear = distance_to_all(SCENE, place.astype(np.float32)[:, None])[0]
        if clear < _CLEAR or np.hypot(*place[:2]) > 0.7:
            continue
        towards = random.uniform([-0.4, -0.4, -0.4], [0.4, 0.4, 0.1])
        back = (place - towards) / np.linalg.norm(place - towards)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3] = np.stack([right, np.cross(back, right), back, place], axis=1)
        poses.append(pose)
    return poses


def draw(lens: Lens, pose: NDArray[np.float64]) -> NDArray[np.uint8]:
    """An image [H, W, 3] of the demo's shapes before white, each pixel the mean of `SAMPLES` squared exact rays."""
    width, height = int(lens.width), int(lens.height)
    column = (torch.arange(width * SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES
    row = (torch.arange(height * SAMPLES, dtype=torch.float64)[:, None] + 0.5) / SAMPLES
    rays = in_world(lens.rays(column, row), torch.from_numpy(pose[:3]).float())
    assert rays.origins is not None
    origins, directions = (v.reshape(-1, 3).T.contiguous().numpy() for v in (rays.origins, rays.directions))
    found = color_and_hit(SCENE, origins, directions)
    before_white = found[:3] * found[3] + 1 - found[3]
    pixels = before_white.reshape(3, height, SAMPLES, width, SAMPLES).mean(axis=(2, 4))
    return np.moveaxis(np.round(255 * pixels), 0, -1).astype(np.uint8)


def write_scene(folder: Path, wide: WideLens, training: int, held_out: int, seed: int) -> None:
    """Write a scene in nerfstudio's format; views that are held out are its validation and test views."""
    folder.mkdir(parents=True)
    frames = []
    for i, pose in enumerate(cameras_among_shapes(training + held_out, seed)):
        Image.fromarray(draw(wide.lens, pose)).save(folder / f"{i:03d}.png")
        frames.append({"file_path": f"{i:03d}.png", "transform_matrix": pose.tolist()})
    names = [frame["file_path"] for frame in frames]
    lens = wide.lens
    entries = {"fl_x": lens.fx, "fl_y": lens.fy, "cx": lens.cx, "cy": lens.cy, "w": lens.width, "h": lens.height}
    splits = {"train": names[:training], "val": names[training:], "test": names[training:]}
    whole = {"camera_model": wide.model, **entries, **{f"{split}_filenames": own for split, own in splits.items()}}
    (folder / "transforms.json").write_text(json.dumps({**whole, "frames": frames}))


def trained(scene: Path, folder: Path, steps: int, minutes: float, seed: int) -> tuple[Image.Image, str]:
    """Train `raygauss` on the images as they are.

    Returns:
        Two held-out images beside what is rendered, and a sentence with the PSNR over all of them.
    """
    # The scene is small and textured: it needs no points where none were triangulated, and no coarse beginning.
    options = ["background_color=white", "gap_points=0", "num_downscales=0"]
    config = configure("raygauss", scene, "nerfstudio-data", steps, folder, options)
    parser = config.pipeline.datamanager.dataparser
    parser.orientation_method, parser.center_method, parser.auto_scale_poses = "none", "none", False
    trainer, timings = train(config, minutes, seed)
    pipeline = trainer.pipeline.eval()
    scores, images = [], []
    for camera, batch in pipeline.datamanager.fixed_indices_eval_dataloader:
        outputs = pipeline.model.get_outputs_for_camera(camera)
        metrics, compared = pipeline.model.get_image_metrics_and_images(outputs, batch)
        scores.append(float(metrics["psnr"]))
        width = outputs["rgb"].shape[1]
        both = np.round(255 * compared["img"].cpu().clamp(0, 1).numpy()).astype(np.uint8)
        images.append([both[:, :width], both[:, width : 2 * width]])
    order = np.argsort(scores)
    chosen = [int(order[len(order) // 2]), int(order[0])]
    rows = [(images[i], ["held-out image", f"rendered: {scores[i]:.1f} dB"]) for i in chosen]
    said = (
        f"{timings['steps']} steps in {timings['train_seconds'] / 60:.1f} minutes, {len(pipeline.model.cloud):,} "
        f"Gaussians, {np.mean(scores):.2f} dB PSNR on {len(scores)} held-out images ({min(scores):.2f} to "
        f"{max(scores):.2f}). Shown: one in the middle and the worst."
    )
    return montage(rows), said
