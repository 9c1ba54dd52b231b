"""`raygauss-render`, with both methods: nerfstudio's subcommands, and what a lens makes of their images."""

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.scripts import render as theirs
from PIL import Image
from small_runs import begin, configure
from small_scenes import write_disc

from ns_support.commands import render
from ns_support.commands.depth_of_field import LensOptions, display_values, linear_light, look_through
from ns_support.errors import UserError
from ns_support.lenses.lens import LensType
from ns_support.lenses.thin_lens import lens_points
from ns_support.rays import camera_rays

LENS = LensOptions(1.0, 2.0, lens_samples=3)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_disc(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module", params=["raygauss", "instant-ngp-hardmine"])
def set_up(request, scene, tmp_path_factory):
    torch.manual_seed(0)
    config = configure(request.param, scene, tmp_path_factory.mktemp("run"))
    pipeline = config.pipeline.setup(device="cpu", test_mode="test").eval()
    if request.param == "raygauss":  # something to see, which starts in no single place
        params = pipeline.model.cloud.params
        params["sh_base"].data.normal_()
        params["sh_rest"].data.normal_(std=0.3)
        params["densities"].data *= 20
    return config, pipeline


@pytest.fixture
def pipeline(set_up):
    """Without a lens before and after."""
    _, pipeline = set_up
    pipeline.loaded_step = 0
    yield pipeline
    for name in ("get_outputs_for_camera", "get_rgba_image"):
        vars(pipeline.model).pop(name, None)


@pytest.fixture
def command(set_up, pipeline, monkeypatch, tmp_path):
    """`command("spiral --seconds 0.1")`: run on the pipeline as if it had been loaded, in an empty folder."""
    config = tmp_path / "config.yml"
    config.touch()
    monkeypatch.setattr(render, "open_finished", lambda path, mode, change: (change(set_up[0]), pipeline))
    monkeypatch.setattr(theirs.install_checks, "check_ffmpeg_installed", lambda: None)
    monkeypatch.chdir(tmp_path)

    def run(words):
        subcommand, *options = shlex.split(words)
        words = ["raygauss-render", subcommand, "--load-config", str(config), "--output-path", "out/a.mp4", *options]
        monkeypatch.setattr(sys, "argv", words)
        render.entrypoint()

    return run


def pictures(folder):
    return [np.asarray(Image.open(path)) for path in sorted(Path(folder).rglob("*.png"))]


def a_camera(pipeline):
    return pipeline.datamanager.eval_dataset.cameras[0:1]


def test_without_an_aperture_the_image_is_the_ordinary_one(pipeline):
    expected = pipeline.model.get_outputs_for_camera(a_camera(pipeline))
    look_through(pipeline.model, LensOptions(0.0, 3.0))
    outputs = pipeline.model.get_outputs_for_camera(a_camera(pipeline))
    for name in ("rgb", "depth", "accumulation", "normals"):
        assert torch.equal(outputs[name], expected[name])
    cut_out = [pipeline.model.get_rgba_image(outputs=found) for found in (outputs, expected)]
    assert torch.equal(*cut_out)


def test_the_image_is_the_mean_of_images_along_rays_written_out(pipeline):
    camera = a_camera(pipeline)
    ordinary = pipeline.model.get_outputs_for_camera(camera)
    pose = camera.camera_to_worlds[0].double()
    v, u = torch.meshgrid(*(torch.arange(24).double() + 0.5 - 12 for _ in "vu"), indexing="ij")
    local = torch.stack([u / float(camera.fx), -v / float(camera.fy), -torch.ones_like(u)], -1)
    light = torch.zeros(24, 24, 3).double()
    for point in lens_points(LensType.PERSPECTIVE, LENS.aperture, LENS.focus_distance, 3):
        origin = torch.tensor(point.offset).double()
        directions = (LENS.focus_distance * local - origin) @ pose[:, :3].T
        directions = torch.nn.functional.normalize(directions, dim=-1).float()
        origins = (pose[:, :3] @ origin + pose[:, 3]).float().expand(24, 24, 3)
        rays = RayBundle(origins, directions, torch.ones(24, 24, 1))
        light += linear_light(pipeline.model.get_outputs_for_camera_ray_bundle(rays)["rgb"].double()) / 3
    look_through(pipeline.model, LENS)
    outputs = pipeline.model.get_outputs_for_camera(camera)
    torch.testing.assert_close(outputs["rgb"], display_values(light).float(), atol=2e-4, rtol=0)
    assert float((outputs["rgb"] - ordinary["rgb"]).abs().max()) > 2e-3
    for name in ("depth", "accumulation", "normals"):
        assert torch.equal(outputs[name], ordinary[name])


def test_the_image_without_its_background_is_the_one_with_it(pipeline):
    """Where the background is white, and where it is seen through nothing."""
    look_through(pipeline.model, LENS)
    outputs = pipeline.model.get_outputs_for_camera(a_camera(pipeline))
    rgba = pipeline.model.get_rgba_image(outputs=outputs, output_name="rgb")
    assert rgba.shape == (24, 24, 4)
    assert rgba.isfinite().all()
    assert float(rgba.min()) >= 0
    assert float(rgba.max()) <= 1
    opaque = rgba[..., 3] > 0.999
    torch.testing.assert_close(rgba[opaque][:, :3], outputs["rgb"][opaque], atol=2e-3, rtol=0)
    with pytest.raises(NotImplementedError, match="depth"):
        pipeline.model.get_rgba_image(outputs=outputs, output_name="depth")


class Wall:
    """A picture on the plane at a depth, seen along exact rays."""

    def __init__(self, depth):
        self.depth = depth

    def get_outputs_for_camera(self, camera, obb_box=None):
        rays = camera_rays(camera)
        origins, directions = rays.origins.double(), rays.directions.double()
        met = origins + directions * ((-self.depth - origins[..., 2:]) / directions[..., 2:])
        x, y = met[..., 0], met[..., 1]
        return {
            "rgb": (0.5 + 0.5 * torch.stack([torch.sin(9 * x), torch.sin(7 * y), torch.cos(8 * x * y)], -1)).float()
        }

    def get_rgba_image(self, outputs, output_name="rgb"):
        return torch.cat([outputs[output_name], torch.ones_like(outputs[output_name][..., :1])], -1)


@pytest.mark.parametrize("distortion", [None, (0.1, -0.05, 0.01, -0.002, 0.002, -0.003)])
def test_the_plane_in_focus_stays_sharp_to_rounding(distortion):
    coefficients = None if distortion is None else torch.tensor([distortion])
    camera = Cameras(torch.eye(4)[None, :3], 60.0, 60.0, 20.0, 15.0, 40, 30, distortion_params=coefficients)
    ordinary = Wall(2.0).get_outputs_for_camera(camera)["rgb"]
    for focus, blurred in ((2.0, False), (2.5, True)):
        wall = Wall(2.0)
        look_through(wall, LensOptions(0.3, focus))
        difference = (wall.get_outputs_for_camera(camera)["rgb"] - ordinary).abs().max()
        assert float(difference) > 5e-3 if blurred else float(difference) < 3e-6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--aperture -0.1 --focus-distance 3", "--aperture must be >= 0 scene units, got -0.1"),
        ("--aperture nan --focus-distance 3", "--aperture must be >= 0 scene units, got nan"),
        ("--aperture inf --focus-distance 3", "--aperture must be >= 0 scene units, got inf"),
        ("--aperture 0.1 --focus-distance 0", "--focus-distance must be > 0 scene units, got 0.0"),
        ("--aperture 0.1 --focus-distance -2", "--focus-distance must be > 0 scene units, got -2.0"),
        ("--aperture 0.1 --focus-distance nan", "--focus-distance must be > 0 scene units, got nan"),
        ("--aperture 0.1 --focus-distance 0.04", "--focus-distance must be > half of --aperture 0.1, got 0.04"),
        ("--aperture 0.1", "--aperture needs --focus-distance"),
        ("--aperture 0.1 --focus-distance 3 --lens-samples 0", "--lens-samples must be >= 1, got 0"),
        ("--aperture 0.1 --focus-distance 3 --lens-seed -1", "--lens-seed must be >= 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(options, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["raygauss-render", "spiral", "--load-config", "nowhere", *options.split()])
    with pytest.raises(UserError) as refused:
        render.entrypoint()
    assert said in refused.value.message


@pytest.mark.parametrize(
    "subcommand", ["spiral --seconds 0.1", "interpolate --interpolation-steps 1 --pose-source train"]
)
def test_paths_are_rendered_through_the_lens(command, subcommand):
    options = f"{subcommand} --output-format images --image-format png --rendered-output-names rgb"
    command(options)
    plain = pictures("out")
    assert len(plain) >= 2
    command(f"{options} --aperture 0 --focus-distance 3")
    assert all(np.array_equal(a, b) for a, b in zip(plain, pictures("out"), strict=True))
    command(f"{options} --aperture 1 --focus-distance 2 --lens-samples 3")
    assert not any(np.array_equal(a, b) for a, b in zip(plain, pictures("out"), strict=True))
    assert theirs.eval_setup.__module__ == "nerfstudio.utils.eval_utils"


def test_an_image_without_its_background(command):
    options = "--output-format images --image-format png --aperture 0.2 --focus-distance 3 --lens-samples 2"
    command(f"spiral --seconds 0.1 --rendered-output-names rgba {options}")
    assert [picture.shape for picture in pictures("out")] == [(24, 24, 4)] * 2


def test_a_run_of_another_method_is_refused(tmp_path, monkeypatch):
    other = SimpleNamespace(model=MagicMock(spec=[]))
    config = SimpleNamespace(method_name="nerfacto")
    monkeypatch.setattr(render, "open_finished", lambda *_: (config, other))
    (tmp_path / "config.yml").touch()
    with pytest.raises(UserError, match="run of nerfacto; raygauss-render renders runs of raygauss and"):
        render.Spiral(load_config=tmp_path).main()


def test_a_finished_run_from_its_folder(scene, tmp_path, monkeypatch):
    trainer = begin(configure("raygauss", scene, tmp_path / "run", steps=2))
    monkeypatch.chdir(tmp_path)
    lens = {"aperture": 0.2, "focus_distance": 3.0, "lens_samples": 2}
    run = trainer.base_dir
    render.OfDataset(load_config=run, output_path=Path("sharp"), split="train", image_format="png").main()
    render.OfDataset(load_config=run, output_path=Path("blurred"), split="train", image_format="png", **lens).main()
    for name in ("gt-rgb", "depth", "accumulation"):
        assert np.array_equal(*(pictures(f"{folder}/train/{name}")[0] for folder in ("sharp", "blurred")))
    assert not np.array_equal(*(pictures(f"{folder}/train/rgb")[0] for folder in ("sharp", "blurred")))
