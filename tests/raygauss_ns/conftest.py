"""A model of a few Gaussians and cameras around it, as functions that tests ask for by name."""

import math

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.optimizers import Optimizers

from ns_support.schedulers import FloatExponentialDecayConfig
from raygauss_ns.config import FusedAdamConfig, RayGaussModelConfig


def _make_model(side=3.0, seed_points=None, **fields):
    torch.manual_seed(0)
    half = side / 2
    defaults = {"num_random": 300, "step_size": 0.02, "initial_scale": 1.0}
    config = RayGaussModelConfig(**(defaults | fields))
    box = SceneBox(torch.tensor([[-half] * 3, [half] * 3]))
    return config.setup(scene_box=box, num_train_data=2, metadata={}, device="cpu", seed_points=seed_points)


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
