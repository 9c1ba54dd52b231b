import copy
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox

from hardmine_ns.mining import HardSampleMining
from hardmine_ns.model import HardMineModelConfig
from hardmine_ns.viewing import HARD_SAMPLES, HardMineRun


@pytest.fixture(scope="module")
def model():
    """A field that knows nothing yet, in a box of two units, seen through an occupancy grid that is full."""
    torch.manual_seed(0)
    small = {"log2_hashmap_size": 12, "max_res": 64, "grid_resolution": 16, "grid_levels": 1, "hidden_dim": 16}
    config = HardMineModelConfig(
        **small, render_step_size=0.03, cone_angle=0.0, disable_scene_contraction=True, eval_num_rays_per_chunk=37
    )
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    made = config.setup(scene_box=box, num_train_data=1, metadata={}, device="cpu").eval()
    with torch.no_grad():
        made.field.encoding.table.mul_(1e3)  # a density that varies
    return made


@pytest.fixture
def camera():
    pose = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3]]])
    return Cameras(pose, 20.0, 20.0, 7.0, 5.0, 14, 10)


def look(model, monkeypatch, output, trainer):
    """As if a viewer showed an output; undone after the test."""
    panel = SimpleNamespace(output_render=output, split=False)
    monkeypatch.setattr(model.run, "viewer", SimpleNamespace(trainer=trainer, control_panel=panel))


def test_extras_are_there_for_those_who_ask(model, camera):
    outputs = model.get_outputs_for_camera(camera)
    assert set(outputs) == {"rgb", "accumulation", "depth", "normals", "density_slice"}
    normals = outputs["normals"]
    assert normals.shape == (10, 14, 3)
    seen = outputs["accumulation"][..., 0] > 0.5
    assert bool(seen.any())
    torch.testing.assert_close((2 * normals[seen] - 1).norm(dim=-1), torch.ones(int(seen.sum())))
    assert bool((normals[~seen] == 0.5).all())


def test_single_rays_give_the_pixels_of_the_image(model, camera):
    image = model.get_outputs_for_camera(camera)
    rays = camera.generate_rays(0, keep_shape=True).flatten()
    single = model.get_outputs(rays)
    for name in ("rgb", "normals", "density_slice"):
        torch.testing.assert_close(single[name], image[name].view(140, -1), atol=1e-4, rtol=1e-4)


def test_the_slice_shows_the_density_that_rays_would_meet(model, camera, monkeypatch):
    monkeypatch.setattr(model.plane.slice_position, "default_value", 0.3)
    rays = camera.generate_rays(0, keep_shape=True).flatten()
    points = rays.origins + rays.directions * (0.3 - rays.origins[:, 2:]) / rays.directions[:, 2:]
    inside = points.abs().amax(-1) < 1
    with torch.no_grad():
        expected = model.densities(points) * inside
    assert 0 < inside.sum() < 140 or bool(inside.all())
    found = model.get_outputs_for_camera(camera)["density_slice"]
    torch.testing.assert_close(found.view(-1), expected, atol=1e-4, rtol=1e-3)
    empty = torch.zeros_like(model.grid.binaries)
    monkeypatch.setitem(model.grid._buffers, "binaries", empty)
    assert not model.get_outputs_for_camera(camera)["density_slice"].any()


def test_hard_samples_are_shown_of_a_training_only(model, camera, monkeypatch):
    assert HARD_SAMPLES not in model.get_outputs_for_camera(camera)
    look(model, monkeypatch, HARD_SAMPLES, None)
    assert HARD_SAMPLES not in model.get_outputs_for_camera(camera)
    look(model, monkeypatch, HARD_SAMPLES, SimpleNamespace())
    assert not model.get_outputs_for_camera(camera)[HARD_SAMPLES].any()


def test_hard_samples_are_counted_while_the_viewer_shows_them(model, camera, monkeypatch):
    rays = camera.generate_rays(0, keep_shape=True).flatten()

    def step():
        outputs = model.train().get_outputs(rays)
        outputs["rgb"].square().sum().backward()
        model.zero_grad(set_to_none=True)
        model.eval()

    step()
    look(model, monkeypatch, "rgb", SimpleNamespace())
    step()
    assert model.run.fractions is None
    look(model, monkeypatch, HARD_SAMPLES, SimpleNamespace())
    step()
    mined = model.mining.statistics
    assert model.run.fractions.seen.sum() == mined.rows
    assert model.run.fractions.chosen.sum() == mined.selected < mined.rows
    outputs = model.get_outputs_for_camera(camera)
    share, accumulation = outputs[HARD_SAMPLES], outputs["accumulation"]
    assert bool(((share >= 0) & (share <= accumulation + 1e-5)).all())
    assert 0.1 < share.sum() / accumulation.sum() < 0.9
    look(model, monkeypatch, "rgb", SimpleNamespace())
    step()
    assert model.run.fractions.seen.sum() == mined.rows
    model.run.fractions = None


def test_controls_set_the_mining_of_the_training():
    mining = HardSampleMining("poisson", 0.05, 0.5)
    run = HardMineRun(mining)
    state = copy.deepcopy(mining.state_dict())
    assert not run.state_dict()
    assert (run.rule.value, run.least.value, run.greatest.value) == ("poisson", 0.05, 0.5)
    run.rule.default_value, run.least.default_value, run.greatest.default_value = "topk", 0.8, 0.2
    run.least.cb_hook(run.least)
    assert (mining.rule, mining.min_fraction, mining.max_fraction) == ("poisson", 0.05, 0.5)  # a step may be under way
    mining.begin_step()
    assert (mining.rule, mining.min_fraction, mining.max_fraction) == ("topk", 0.2, 0.8)
    run.greatest.default_value = 0.0
    run.greatest.cb_hook(run.greatest)
    mining.begin_step()
    assert 0 < mining.min_fraction <= mining.max_fraction
    assert mining.state_dict() == state
