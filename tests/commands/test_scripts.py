"""What nerfstudio's scripts hand to both methods, by their own functions; those of `ns-export` without Open3D."""

import importlib
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.scripts import render
from PIL import Image
from small_runs import configure
from small_scenes import write_disc

from ns_support.viewer.outputs import Outputs


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_disc(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module", params=["raygauss", "instant-ngp-hardmine"])
def pipeline(request, scene, tmp_path_factory):
    torch.manual_seed(0)
    config = configure(request.param, scene, tmp_path_factory.mktemp("run"))
    return config.pipeline.setup(device="cpu", test_mode="test").eval()


def bundle(shape=(5,), **fields):
    torch.manual_seed(1)
    rays = {
        "origins": torch.tensor([0.0, 0.0, 3.0]).expand(*shape, 3),
        "directions": torch.nn.functional.normalize(
            torch.tensor([0.0, 0.0, -1.0]) + 0.1 * torch.randn(*shape, 3), dim=-1
        ),
        "pixel_area": torch.ones(*shape, 1),
    }
    return RayBundle(**(rays | fields))


GIVEN = {
    "double": lambda rays: RayBundle(rays.origins.double(), rays.directions.double(), rays.pixel_area),
    "long directions": lambda rays: RayBundle(rays.origins, 1.7 * rays.directions, rays.pixel_area),
    "short directions": lambda rays: RayBundle(rays.origins, 0.01 * rays.directions, rays.pixel_area),
    "integer end": lambda rays: RayBundle(
        rays.origins,
        rays.directions,
        torch.ones_like(rays.pixel_area, dtype=torch.int64),
        camera_indices=torch.zeros_like(rays.pixel_area),
        nears=torch.full_like(rays.pixel_area, 0.05),
        fars=torch.full_like(rays.pixel_area, 100, dtype=torch.int64),
    ),
    "no area": lambda rays: RayBundle(rays.origins, rays.directions, None),
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("entry", ["__call__", "get_outputs", "get_outputs_for_camera_ray_bundle"])
def test_rays_of_any_make_are_rendered_alike(pipeline, given, entry):
    rays = bundle((3, 4))
    expected = pipeline.model.get_outputs_for_camera_ray_bundle(rays)
    with torch.no_grad():
        outputs = getattr(pipeline.model, entry)(GIVEN[given](rays))
    for name in ("rgb", "accumulation", "normals"):
        assert outputs[name].shape == expected[name].shape
        torch.testing.assert_close(outputs[name], expected[name], atol=2e-3, rtol=0)
    assert bool(outputs["depth"].isfinite().all())


@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (2, 3), (2, 1, 2)])
def test_rays_of_any_shape(pipeline, shape):
    with torch.no_grad():
        outputs = pipeline.model(bundle(shape))
    for name, channels in {"rgb": 3, "depth": 1, "accumulation": 1, "normals": 3}.items():
        assert outputs[name].shape == (*shape, channels)
        assert outputs[name].dtype == torch.float32


def test_a_ray_that_meets_nothing_is_as_long_as_it_was_to_be(pipeline):
    away = bundle((1,), origins=torch.tensor([[0.0, 0.0, 30.0]]), directions=torch.tensor([[0.0, 0.0, 1.0]]))
    away.nears, away.fars = torch.tensor([[0.05]]), torch.tensor([[100]])
    with torch.no_grad():
        assert pipeline.model.get_outputs(away)["depth"].tolist() == [[100.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_cameras_of_any_make(pipeline, dtype, shape):
    given = pipeline.datamanager.eval_dataset.cameras[0]
    expected = pipeline.model.get_outputs_for_camera(given)["rgb"]
    camera = Cameras(
        given.camera_to_worlds.to(dtype).expand(*shape, 3, 4),
        *(getattr(given, name).to(dtype).expand(*shape, 1) for name in ("fx", "fy", "cx", "cy")),
        width=given.width.int().expand(*shape, 1),
        height=given.height.int().expand(*shape, 1),
    )
    rendered = pipeline.model.get_outputs_for_camera(camera)["rgb"]
    torch.testing.assert_close(rendered, expected, atol=1e-4, rtol=0)


def test_several_cameras_are_refused(pipeline):
    with pytest.raises(ValueError, match="must be one camera"):
        pipeline.model.get_outputs_for_camera(pipeline.datamanager.train_dataset.cameras)


@pytest.fixture
def commands(pipeline, monkeypatch, tmp_path):
    """`ns-render` on the pipeline as if it had been loaded, here."""
    monkeypatch.setattr(render, "eval_setup", lambda *_, **__: (None, pipeline, None, 0))
    monkeypatch.setattr(render.install_checks, "check_ffmpeg_installed", lambda: None)
    monkeypatch.chdir(tmp_path)
    return {"load_config": Path("config.yml"), "output_path": Path("out/a.mp4"), "output_format": "images"}


def pictures(folder):
    return [np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("*.jpg"))]


def test_spiral(commands):
    render.SpiralRender(**commands, seconds=0.1).main()
    assert [picture.shape for picture in pictures("out/a")] == [(24, 24, 3)] * 2


@pytest.mark.parametrize("occlusions", [False, True])
def test_the_nearest_camera_beside_each_picture(commands, pipeline, occlusions):
    options = {"pose_source": "train", "interpolation_steps": 2, "render_nearest_camera": True}
    render.RenderInterpolated(**commands, **options, check_occlusions=occlusions).main()
    shown = pictures("out/a")
    assert len(shown) == 2 * (len(pipeline.datamanager.train_dataset) - 1)
    assert all(picture.shape == (24, 48, 3) for picture in shown)


def test_an_unknown_output_gets_the_list(commands, capsys):
    with pytest.raises(SystemExit):
        render.SpiralRender(**commands, seconds=0.1, rendered_output_names=["foo"]).main()
    said = capsys.readouterr().out
    assert "'rgb'" in said
    assert "'normals'" in said
    assert "object at" not in said


def test_names_are_listed_by_every_way_to_ask():
    outputs = Outputs({"rgb": torch.zeros(2, 3)}, {})
    assert repr(outputs.keys()) == "['rgb']"
    assert repr(outputs) == "Outputs(rgb)"
    with pytest.raises(KeyError, match="no output 'foo': there are rgb"):
        outputs["foo"]


@pytest.fixture
def exporter_utils(monkeypatch):
    """`ns-export`'s own functions, with a stand-in for Open3D that passes points through."""
    open3d = MagicMock(name="open3d")
    open3d.utility.Vector3dVector = np.asarray
    monkeypatch.setitem(sys.modules, "open3d", open3d)
    name = "nerfstudio.exporter.exporter_utils"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def test_a_point_cloud_with_the_models_normals(exporter_utils, scene, tmp_path):
    """As `ns-export pointcloud` and `poisson` gather it by default."""
    config = configure("raygauss", scene, tmp_path)
    config.pipeline.model.initial_density, config.pipeline.model.initial_scale = 60.0, 2.0
    pipeline = config.pipeline.setup(device="cpu", test_mode="test").eval()
    pipeline.datamanager.train_pixel_sampler.num_rays_per_batch = 512
    options = {"remove_outliers": False, "normal_output_name": "normals"}
    cloud = exporter_utils.generate_point_cloud(pipeline, 500, **options)
    assert len(cloud.points) >= 500
    assert np.abs(cloud.points).max() < 4  # the cameras' distance
    lengths = np.linalg.norm(cloud.normals, axis=-1)
    assert len(lengths) == len(cloud.points)
    assert lengths.max() < 1.01
