import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ns_support.data.ply import read_ply, write_ply
from ns_support.errors import UserError
from ns_support.viewer.frames import FrameThread
from ns_support.viewer.page import Seen
from raygauss_ns.export import header_comments
from raygauss_ns.gaussians.ply_formats import cloud_columns, splat_columns
from raygauss_ns.view import command
from raygauss_ns.view.command import ViewCommand
from raygauss_ns.view.files import first_view, read_scene

CPU = torch.device("cpu")


@pytest.fixture
def trained(make_model):
    model = make_model(side=2.0, num_random=100, density_threshold=0.3, near_plane=0.1).eval()
    for parameter in model.cloud.params.values():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.update_to_step(model.total_steps)
    return model


@pytest.fixture
def ours(trained, tmp_path):
    path = tmp_path / "raygauss.ply"
    write_ply(path, cloud_columns(trained.cloud), header_comments(trained))
    return path


@pytest.fixture
def foreign(trained, tmp_path):
    """As another program writes it: no comments."""
    path = tmp_path / "point_cloud.ply"
    write_ply(path, splat_columns(trained.cloud, trained.cast_settings.density_threshold))
    return path


def test_a_file_of_ours_looks_as_the_trained_model(trained, ours, make_cameras):
    scene = read_scene(ours, None, "white", CPU)
    assert scene.model.cast_settings == pytest.approx(trained.cast_settings)
    camera = make_cameras()[0:1]
    first, second = (model.get_outputs_for_camera(camera) for model in (trained, scene.model))
    assert float(first["rgb"].std()) > 0.01
    for name in ("rgb", "depth", "normals"):
        assert float((first[name] - second[name]).abs().max()) <= 1e-5
    black = read_scene(ours, None, "black", CPU).model.get_outputs_for_camera(camera)
    empty = 1 - first["accumulation"]
    torch.testing.assert_close(black["rgb"], (first["rgb"] - empty).clamp_min(0), atol=0.02, rtol=0)


def test_the_viewers_controls_act_on_a_file(ours, make_cameras):
    model = read_scene(ours, None, "white", CPU).model
    model.pictures.scale.default_value = 0.3
    camera, drawn = make_cameras()[0:1], []

    def draw(view, pixels):
        drawn.append(model.get_outputs_for_camera(view)["accumulation"].mean())
        return pixels

    thread = FrameThread(draw, lambda view: 1)
    thread.start()
    thread.request(camera)
    while not drawn:
        pass
    thread.close()
    thread.join(10)
    assert float(drawn[0]) < 0.8 * float(model.get_outputs_for_camera(camera)["accumulation"].mean())


def test_a_file_of_another_program(foreign):
    scene = read_scene(foreign, None, "white", CPU)
    spread = torch.quantile(scene.model.cloud.params["means"].detach(), torch.tensor([0.05, 0.95]), dim=0)
    assert scene.model.unit == pytest.approx(float((spread[1] - spread[0]).max()) / 3, rel=1e-4)
    assert scene.view.up.tolist() == [0, -1, 0]
    assert read_scene(foreign, "x", "white", CPU).view.up.tolist() == [1, 0, 0]
    assert float(scene.model.cloud.gaussians().scales.min()) >= 0.5 * scene.model.cast_settings.step * 0.999
    assert mean_opacity(scene) > 0.02


def mean_opacity(scene):
    view = scene.view
    ahead = torch.nn.functional.normalize(view.look_at - view.position, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(ahead, view.up), dim=0)
    pose = torch.stack([right, torch.linalg.cross(right, ahead), -ahead, view.position], 1)
    seen = Seen(pose, view.fov, 1.0)
    return float(scene.model.get_outputs_for_camera(seen.camera(400))["accumulation"].mean())


@pytest.mark.parametrize("up", ["x", "y", "z", "-x", "-y", "-z"])
def test_the_first_view_shows_the_box_from_above(up):
    box = torch.tensor([[0.0, 1.0, 2.0], [4.0, 2.0, 4.0]])
    view = first_view(box, up)
    away = view.position - box.double().mean(0)
    distance = float(away.norm())
    assert math.degrees(math.asin(float(away @ view.up) / distance)) == pytest.approx(20)
    radius = 0.5 * float((box[1] - box[0]).norm())
    assert radius < distance * math.sin(view.fov / 2) < 2 * radius


@pytest.mark.parametrize("damage", ["empty", "points", "no settings"])
def test_files_that_cannot_be_shown(ours, foreign, damage, tmp_path):
    path = tmp_path / "damaged.ply"
    columns = read_ply(ours).columns
    if damage == "empty":
        write_ply(path, {name: column[:0] for name, column in columns.items()})
    elif damage == "points":
        write_ply(path, {name: columns[name] for name in "xyz"})
    else:  # a header with a step of 0 is no reason to fail
        write_ply(path, columns, ["scene_unit nan", "step 0"])
        assert len(read_scene(path, None, "white", CPU).model.cloud) == 100
        return
    with pytest.raises(UserError, match=str(path)):
        read_scene(path, None, "white", CPU)


def test_a_flat_scene_has_a_size(tmp_path, foreign):
    columns = read_ply(foreign).columns
    for name in "xyz":
        columns[name] = np.zeros_like(columns[name])
    path = tmp_path / "one_place.ply"
    write_ply(path, columns)
    scene = read_scene(path, None, "white", CPU)
    assert scene.model.unit > 0
    assert bool(scene.view.position.isfinite().all())


class TestOpening:
    def test_a_run(self, trained, make_cameras, monkeypatch, tmp_path):
        (tmp_path / "config.yml").touch()
        dataset = SimpleNamespace(cameras=make_cameras())
        pipeline = SimpleNamespace(model=trained, datamanager=SimpleNamespace(train_dataset=dataset))
        run = SimpleNamespace(method_name="raygauss")
        monkeypatch.setattr(command, "open_finished", lambda path, mode: (run, pipeline))
        for source in (tmp_path, tmp_path / "config.yml"):
            opened = ViewCommand(source).open()
            assert opened.model is trained
            assert "raygauss" in opened.about
        monkeypatch.setattr(command, "open_finished", lambda path, mode: (run, SimpleNamespace(model=object())))
        run.method_name = "nerfacto"
        with pytest.raises(UserError, match="a run of nerfacto"):
            ViewCommand(tmp_path).open()

    def test_a_file(self, ours):
        opened = ViewCommand(ours).open()
        assert opened.about == f"100 Gaussians from {ours}."

    @pytest.mark.parametrize("source", ["missing", "missing.ply"])
    def test_nothing(self, source, tmp_path):
        with pytest.raises(UserError, match="does not exist; give a PLY file of Gaussians, or"):
            ViewCommand(tmp_path / source).open()

    def test_it_listens_on_this_machine_only_unless_told(self):
        assert ViewCommand(Path("x")).host == "127.0.0.1"
