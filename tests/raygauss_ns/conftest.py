"""A model of a few Gaussians, cameras around it and a scene of a few pixels, for tests to ask for by name."""

import json
import math

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.optimizers import Optimizers
from PIL import Image

from ns_support.schedulers import FloatExponentialDecayConfig
from raygauss_ns.config import FusedAdamConfig, RayGaussModelConfig

SIDE = 20
"""Pixels on a side of the scene's images."""


def _make_model(side=3.0, seed_points=None, cameras=None, checkpoint_follows=False, **fields):
    torch.manual_seed(0)
    half = side / 2
    defaults = {"num_random": 300, "step_size": 0.02, "initial_scale": 1.0}
    config = RayGaussModelConfig(**(defaults | fields))
    box = SceneBox(torch.tensor([[-half] * 3, [half] * 3]))
    metadata = {"checkpoint_follows": checkpoint_follows} | ({} if cameras is None else {"train_cameras": cameras})
    return config.setup(scene_box=box, num_train_data=2, metadata=metadata, device="cpu", seed_points=seed_points)


def _make_cameras(count=2, height=21, width=30, kind=CameraType.PERSPECTIVE, radius=4.0):
    poses = []
    for i in range(count):
        angle = 2 * math.pi * i / count
        c, s = math.cos(angle), math.sin(angle)
        # Looks along -z of its own at the origin, y up.
        poses.append([[c, 0, s, radius * s], [0, 1, 0, 0], [-s, 0, c, radius * c]])
    return Cameras(torch.tensor(poses), 40.0, 40.0, width / 2, height / 2, width, height, camera_type=kind)


def _optimizers_of(model):
    config = {
        name: {
            "optimizer": FusedAdamConfig(lr=0.1),
            "scheduler": FloatExponentialDecayConfig(lr_final=0.001, max_steps=30_000),
        }
        for name in model.get_param_groups()
    }
    return Optimizers(config, model.get_param_groups())


@pytest.fixture
def make_model():
    return _make_model


@pytest.fixture
def make_cameras():
    return _make_cameras


@pytest.fixture
def optimizers_of():
    return _optimizers_of


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """A ball, blue to yellow from left to right, seen from four sides."""
    folder = tmp_path_factory.mktemp("scene")
    v, u = (np.mgrid[0:SIDE, 0:SIDE] + 0.5) / SIDE
    inside = (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.12
    for split, count in (("train", 4), ("val", 1), ("test", 1)):
        frames = []
        for i in range(count):
            c, s = math.cos(2 * math.pi * i / count), math.sin(2 * math.pi * i / count)
            pose = [[c, 0, s, 4 * s], [0, 1, 0, 0], [-s, 0, c, 4 * c], [0, 0, 0, 1]]
            frames.append({"file_path": f"./{split}_{i}", "transform_matrix": pose})
            rgba = np.stack([u, u * c * c + v * s * s, 1 - u, inside], -1) * inside[..., None]
            Image.fromarray((rgba * 255).astype(np.uint8)).save(folder / f"{split}_{i}.png")
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.6, "frames": frames}))
    return folder
