"""A scene of a few pixels, made on the spot, in both of the formats that the methods are used with."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_scenes import write_blender, write_nerfstudio

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


def _views(count: int, radius: float = 0.9, folder: str = "", turn: float = 0.0) -> list[tuple]:
    """All around the ball."""
    poses = [look_at(2 * math.pi * i / count + turn) for i in range(count)]
    return [(f"{folder}{i}", picture(pose, radius), pose) for i, pose in enumerate(poses)]


def _blender(folder: Path, count: int, radius: float = 0.9) -> Path:
    train, val = _views(count, radius, "train/r_"), _views(count, radius, "val/r_")[:2]
    return write_blender(folder, FOV, train=train, val=val, test=_views(count, radius, "test/r_", turn=0.3)[:2])


@pytest.fixture
def ball(tmp_path: Path) -> Path:
    """Six views of a ball, `blender-data`."""
    return _blender(tmp_path / "ball", 6)


@pytest.fixture(scope="module")
def lasting_ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for all tests of a module."""
    return _blender(tmp_path_factory.mktemp("lasting") / "ball", 6)


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    """Three views of nothing, `blender-data`."""
    return _blender(tmp_path / "blank", 3, radius=0.0)


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Writes views of a ball for `nerfstudio-data`: `photos(8, mask=255)`."""

    def write(views: int, mask: int | None = None) -> Path:
        focal = 0.5 * SIZE / math.tan(0.5 * FOV)
        camera = {"w": SIZE, "h": SIZE, "fl_x": focal, "fl_y": focal, "cx": SIZE / 2, "cy": SIZE / 2}
        seen = [(name, image[..., :3], pose) for name, image, pose in _views(views, folder="images/")]
        masks = None if mask is None else [np.full((SIZE, SIZE), mask, np.uint8)] * views
        return write_nerfstudio(tmp_path / "photos", seen, masks, **camera, camera_model="OPENCV")

    return write
