"""A model of a few Gaussians, cameras around it and a scene of a few pixels, for tests to ask for by name.

nerfstudio is imported by who asks: the kernels' tests below this folder do without it.
"""

import math

import pytest
import torch
from small_scenes import write_disc

SIDE = 24
"""Pixels on a side of the scene's images."""


def _make_model(side=3.0, seed_points=None, cameras=None, checkpoint_follows=False, **fields):
    from nerfstudio.data.scene_box import SceneBox

    from raygauss_ns.config import RayGaussModelConfig

    torch.manual_seed(0)
    half = side / 2
    defaults = {"num_random": 300, "step_size": 0.02, "initial_scale": 1.0}
    config = RayGaussModelConfig(**(defaults | fields))
    box = SceneBox(torch.tensor([[-half] * 3, [half] * 3]))
    metadata = {"checkpoint_follows": checkpoint_follows} | ({} if cameras is None else {"train_cameras": cameras})
    return config.setup(scene_box=box, num_train_data=2, metadata=metadata, device="cpu", seed_points=seed_points)


def _make_cameras(count=2, height=21, width=30, kind=None, radius=4.0):
    from nerfstudio.cameras.cameras import Cameras, CameraType

    poses = []
    for i in range(count):
        angle = 2 * math.pi * i / count
        c, s = math.cos(angle), math.sin(angle)
        # Looks along -z of its own at the origin, y up.
        poses.append([[c, 0, s, radius * s], [0, 1, 0, 0], [-s, 0, c, radius * c]])
    return Cameras(
        torch.tensor(poses),
        40.0,
        40.0,
        width / 2,
        height / 2,
        width,
        height,
        camera_type=kind or CameraType.PERSPECTIVE,
    )


def _optimizers_of(model):
    from nerfstudio.engine.optimizers import Optimizers

    from ns_support.schedulers import FloatExponentialDecayConfig
    from raygauss_ns.config import FusedAdamConfig

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
    return write_disc(tmp_path_factory.mktemp("scene"), SIDE, turning=True)
