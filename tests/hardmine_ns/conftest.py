"""A scene of a few pixels, made on the spot, in both of the formats that the methods are used with."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = 24
FOV = 0.8


def look_at(azimuth: float) -> np.ndarray:
    """Camera-to-world matrix, OpenGL axes, 4 units from the origin and looking at it."""
    eye = 4 * np.array([math.cos(azimuth), math.sin(azimuth), 0.3])
    back = eye / np.linalg.norm(eye)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(back, right), back, eye
    return pose


def picture(pose: np.ndarray, radius: float) -> np.ndarray:
    """RGBA of a ball whose colour is its surface position."""
    focal = 0.5 * SIZE / math.tan(0.5 * FOV)
    v, u = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    local = np.stack([(u - SIZE / 2) / focal, -(v - SIZE / 2) / focal, -np.ones_like(u)], -1)
    d = local @ pose[:3, :3].T
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    o = pose[:3, 3]
    b = d @ o
    root = b**2 - (o @ o - radius**2)
    t = -b - np.sqrt(np.maximum(root, 0))
    surface = (o + t[..., None] * d) / (2 * max(radius, 1e-3)) + 0.5
    rgba = np.concatenate([surface, np.ones((SIZE, SIZE, 1))], -1) * (root > 0)[..., None]
    return (rgba.clip(0, 1) * 255).astype(np.uint8)


def write_blender(folder: Path, views: int, radius: float = 0.9) -> Path:
    for split in ("train", "val", "test"):
        frames = []
        for i in range(views if split == "train" else 2):
            pose = look_at(2 * math.pi * i / views + (0.3 if split == "test" else 0))
            (folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(pose, radius)).save(folder / split / f"r_{i}.png")
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()})
        meta = {"camera_angle_x": FOV, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
    return folder


def write_nerfstudio(folder: Path, views: int, mask: int | None = None) -> Path:
    focal = 0.5 * SIZE / math.tan(0.5 * FOV)
    frames = []
    (folder / "images").mkdir(parents=True)
    for i in range(views):
        pose = look_at(2 * math.pi * i / views)
        rgba = picture(pose, 0.9)
        Image.fromarray(rgba[..., :3]).save(folder / "images" / f"{i}.png")
        frame = {"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()}
        if mask is not None:
            Image.fromarray(np.full((SIZE, SIZE), mask, np.uint8)).save(folder / "images" / f"mask_{i}.png")
            frame["mask_path"] = f"images/mask_{i}.png"
        frames.append(frame)
    camera = {"w": SIZE, "h": SIZE, "fl_x": focal, "fl_y": focal, "cx": SIZE / 2, "cy": SIZE / 2}
    (folder / "transforms.json").write_text(json.dumps({**camera, "camera_model": "OPENCV", "frames": frames}))
    return folder


@pytest.fixture
def ball(tmp_path: Path) -> Path:
    """Six views of a ball, `blender-data`."""
    return write_blender(tmp_path / "ball", views=6)


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    """Three views of nothing, `blender-data`."""
    return write_blender(tmp_path / "blank", views=3, radius=0.0)


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Writes views of a ball for `nerfstudio-data`: `photos(8, mask=255)`."""

    def write(views: int, mask: int | None = None) -> Path:
        return write_nerfstudio(tmp_path / "photos", views, mask)

    return write
