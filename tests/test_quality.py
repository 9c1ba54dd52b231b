"""A floor under the quality of both methods: what 200 steps reach on a made scene of 64 x 64 pixels, with a fixed seed.

A renderer, a gradient, an optimiser or a schedule that is a little wrong still trains, and passes every test of its
parts' shapes; it does not pass this one. The floors are a decibel below what two CPU cores measured.
"""

import copy
import sys
from pathlib import Path

import pytest
from small_runs import METHODS, begin

from ns_support.auto_data import AutoDataParserConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from make_scene import make_scene

pytestmark = pytest.mark.slow
FLOORS = {"raygauss": 23.6, "instant-ngp-hardmine-bounded": 15.7}
"""PSNR on test views, in decibels."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    make_scene(folder, resolution=64, train=20, val=1, test=4, samples=2)
    return folder


@pytest.mark.parametrize("method", FLOORS)
def test_a_short_training_reaches_the_floor(method, scene, tmp_path):
    config = copy.deepcopy(METHODS[method])
    config.pipeline.datamanager.data = config.data = scene
    config.pipeline.datamanager.dataparser = AutoDataParserConfig()
    config.output_dir, config.experiment_name = tmp_path, "floor"
    config.vis, config.max_num_iterations, config.machine.device_type = "tensorboard", 200, "cpu"
    config.steps_per_eval_batch = config.steps_per_eval_image = 0
    trainer = begin(config)
    trainer.pipeline.eval()
    psnr = float(trainer.pipeline.get_average_eval_image_metrics()["psnr"])
    assert psnr > FLOORS[method]
