"""The rays that nerfstudio's commands make by hand, and what they ask of pipelines, with both methods.

`ns-export` imports Open3D, which needs a library of the system's: here a stand-in takes its place, which is not asked
for anything before points are gathered.
"""

import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from small_runs import METHODS, begin, both, configure
from small_scenes import write_disc

from ns_support.commands.given_rays import given_rays
from ns_support.commands.rendering import prepare_rendering
from ns_support.errors import UserError


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    scene = write_disc(tmp_path_factory.mktemp("scene") / "disc")
    made = {}
    for method in METHODS:
        trainer = begin(configure(method, scene, tmp_path_factory.mktemp("runs"), 2))
        made[method] = trainer.config.pipeline.setup(device="cpu", test_mode="test").eval()
        made[method].load_state_dict(trainer.pipeline.state_dict())
    return made


@pytest.fixture
def exporter(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", MagicMock(name="open3d"))
    monkeypatch.delitem(sys.modules, "nerfstudio.scripts.exporter", raising=False)
    from nerfstudio.scripts import exporter

    yield exporter
    sys.modules.pop("nerfstudio.scripts.exporter", None)


@both
@pytest.mark.parametrize("output", ["normals", "rgb"])
def test_the_exporters_probe_is_taken(method, output, pipelines, exporter):
    exporter.validate_pipeline("model_output", output, pipelines[method])


@both
def test_an_unknown_output_gets_the_names(method, pipelines, exporter, capsys):
    with pytest.raises(SystemExit):
        exporter.validate_pipeline("model_output", "nonsense", pipelines[method])
    assert "'normals'" in " ".join(capsys.readouterr().out.split())


def bundle(**changes):
    """As `ns-render --render-nearest-camera` makes it: one ray, whose bounds are partly integers."""
    origin = torch.tensor([[0.3, 0.2, 4.0]])
    fields = {
        "origins": origin,
        "directions": torch.tensor([[0.0, 0.0, -1.0]]),
        "pixel_area": torch.tensor(1).view(1, 1),
        "nears": torch.tensor(0.05).view(1, 1),
        "fars": torch.tensor(100).view(1, 1),
        "camera_indices": torch.tensor(0).view(1, 1),
        "metadata": {},
    }
    return RayBundle(**(fields | changes))


FOREIGN = {
    "integers": {},
    "long": {"directions": torch.tensor([[0.0, 0.0, -7.0]])},
    "double": {
        "origins": torch.tensor([[0.3, 0.2, 4.0]]).double(),
        "directions": torch.tensor([[0.0, 0, -1]]).double(),
    },
    "half": {"directions": torch.tensor([[0.0, 0.0, -1.0]]).half()},
    "no bounds": {"nears": None, "fars": None},
}


@both
@pytest.mark.parametrize("name", FOREIGN)
def test_rays_of_any_length_and_type(method, name, pipelines):
    model = pipelines[method].model
    with torch.no_grad():
        wanted = model.get_outputs(bundle(fars=torch.tensor([[100.0]])))
        found = model.get_outputs(bundle(**FOREIGN[name]))
    for output in ("rgb", "accumulation", "depth"):
        torch.testing.assert_close(found[output], wanted[output], atol=1e-3, rtol=1e-3)


@both
@pytest.mark.parametrize("direction", [[0.0, 0.0, 0.0], [float("nan")] * 3, [float("inf"), 0.0, 0.0]])
def test_a_ray_without_a_direction_sees_nothing(method, direction, pipelines):
    """From a camera to itself, as along a path that begins at a training camera."""
    with torch.no_grad():
        outputs = pipelines[method].model.get_outputs(bundle(directions=torch.tensor([direction])))
    assert float(outputs["accumulation"]) == 0.0
    assert bool(outputs["rgb"].isfinite().all())


@both
def test_rays_of_any_shape(method, pipelines):
    model = pipelines[method].model
    spread = torch.linspace(-0.3, 0.3, 6)
    directions = torch.stack([spread, torch.zeros(6), -torch.ones(6)], -1)
    origins = torch.tensor([0.0, 0.0, 4.0]).expand(6, 3)
    area = torch.ones(6, 1)
    flat = RayBundle(origins, directions, area)
    shaped = RayBundle(origins.view(2, 3, 3), directions.view(2, 3, 3), area.view(2, 3, 1))
    with torch.no_grad():
        one, other = model.get_outputs(flat), model.get_outputs(shaped)
    for name in ("rgb", "accumulation", "depth", "normals", "density_slice"):
        assert other[name].shape[:2] == (2, 3)
        torch.testing.assert_close(other[name].reshape(6, -1), one[name], atol=1e-3, rtol=1e-3)


def test_unit_rays_stay_as_they_are():
    directions = torch.nn.functional.normalize(torch.randn(1000, 3), dim=-1)
    rays = RayBundle(torch.randn(1000, 3), directions, torch.ones(1000, 1))
    assert torch.equal(given_rays(rays, "cpu").directions, directions)


@both
def test_a_spiral_begins_at_an_evaluation_camera(method, pipelines, monkeypatch):
    from nerfstudio.cameras.camera_paths import get_spiral_path

    render = ModuleType("nerfstudio.scripts.render")
    render.SpiralRender, render.get_spiral_path, render.ParallelDataManager = object, get_spiral_path, dict
    monkeypatch.setitem(sys.modules, render.__name__, render)
    for _ in range(2):
        prepare_rendering()
    datamanager = pipelines[method].datamanager
    if method == "raygauss":
        assert isinstance(datamanager, (list, render.ParallelDataManager))
    camera, _ = datamanager.eval_dataloader.get_camera(image_idx=0)
    path = render.get_spiral_path(camera, steps=5, radius=0.1)
    assert path.shape == (5,)
    assert path.camera_to_worlds.dtype == torch.float32


def test_without_evaluation_images_a_spiral_is_a_sentence(pipelines):
    from ns_support.full_images import EvalCameras

    source = SimpleNamespace(eval_dataset=[], _no_eval_images=lambda: "There is no image to evaluate on.")
    with pytest.raises(UserError, match="There is no image to evaluate on"):
        EvalCameras(source).get_camera()
