"""What NeRFBaselines' `test-method` checks, on a scene of a few pixels; NeRFBaselines itself need not be installed."""

import filecmp
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from small_scenes import write_disc

from ns_support.data.ply import read_ply
from ns_support.errors import UserError
from ns_support.nerfbaselines.dataset import gl_poses, nerfstudio_camera, write_dataset
from ns_support.nerfbaselines.method import InstantNGPHardMine, RayGauss, writer

MODELS = ["pinhole", "opencv", "opencv_fisheye", "full_opencv"]
SMALL = {
    "object": "True",
    "pipeline.model.num_random": "300",
    "pipeline.model.step_size": "0.02",
    "pipeline.model.training_window": 12,
}


@pytest.fixture(autouse=True)
def nerfbaselines(monkeypatch):
    module = SimpleNamespace(camera_model_from_int=MODELS.__getitem__)
    monkeypatch.setitem(sys.modules, "nerfbaselines", module)


class Cameras(SimpleNamespace):
    """NeRFBaselines' cameras: arrays with one row for each, or none for a single one."""

    def __getitem__(self, i):
        return Cameras(**{name: value[i] for name, value in vars(self).items()})

    def item(self):
        return self


def cameras(poses, model=0, distortion=(), size=(24, 20)):
    count = len(poses)
    return Cameras(
        poses=np.array(poses, np.float32),
        intrinsics=np.tile(np.array([30.0, 31.0, 12.0, 10.5], np.float32), (count, 1)),
        camera_models=np.full(count, model, np.int32),
        distortion_parameters=np.tile(np.array(distortion, np.float32), (count, 1)).reshape(count, -1),
        image_sizes=np.tile(np.array(size, np.int32), (count, 1)),
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = write_disc(tmp_path_factory.mktemp("scene"))
    meta = json.loads((folder / "transforms_train.json").read_text())
    poses = np.array([frame["transform_matrix"] for frame in meta["frames"]])[:, :3]
    poses[..., 1:3] *= -1  # to OpenCV's axes
    paths = [str((folder / frame["file_path"]).with_suffix(".png")) for frame in meta["frames"]]
    side = plain_size(paths[0])
    made = cameras(poses, size=(side, side))
    made.intrinsics[:] = [0.5 * side / np.tan(0.5 * meta["camera_angle_x"])] * 2 + [side / 2] * 2
    return {"cameras": made, "image_paths": paths, "mask_paths": None}


def plain_size(path):
    from PIL import Image

    return Image.open(path).width


def test_train_save_load_and_render(dataset, tmp_path):
    method = RayGauss(train_dataset=dataset, config_overrides=SMALL)
    assert method.get_info()["loaded_step"] is None
    metrics = [method.train_iteration(step) for step in range(3)]
    assert all(np.isfinite(value) for value in metrics[-1].values())
    assert "psnr" in metrics[-1]
    before = method.render(dataset["cameras"][0])
    height, width = dataset["cameras"].image_sizes[0][::-1]
    assert before["color"].shape == (height, width, 3)
    assert before["depth"].shape == before["accumulation"].shape == (height, width)
    assert all(value.dtype == np.float32 for value in before.values())
    method.save(str(tmp_path / "first"))
    method.close()

    again = RayGauss(checkpoint=str(tmp_path / "first"))
    assert again.get_info()["loaded_step"] == 3
    for name, value in again.render(dataset["cameras"][0]).items():
        np.testing.assert_allclose(value, before[name], atol=1e-6)
    again.save(str(tmp_path / "second"))
    compared = filecmp.dircmp(tmp_path / "first", tmp_path / "second")
    assert not compared.left_only
    assert not compared.right_only
    assert not compared.diff_files
    with pytest.raises(UserError, match="without a data set can't be trained"):
        again.train_iteration(3)

    resumed = RayGauss(checkpoint=str(tmp_path / "first"), train_dataset=dataset)
    np.testing.assert_allclose(resumed.render(dataset["cameras"][0])["color"], before["color"], atol=1e-6)
    resumed.train_iteration(3)
    resumed.save(str(tmp_path / "third"))
    assert RayGauss(checkpoint=str(tmp_path / "third")).get_info()["loaded_step"] == 4


def test_nerfstudios_own_log_is_closed_and_does_not_grow(dataset):
    threads = threading.active_count()
    method = RayGauss(train_dataset=dataset, config_overrides=SMALL)
    for step in range(3):
        method.train_iteration(step)
    assert not writer.EVENT_STORAGE
    assert not writer.EVENT_WRITERS
    assert threading.active_count() == threads
    folder = Path(method._folder.name)
    method.close()
    assert not folder.exists()


def test_an_object_stays_where_it_is_and_fills_the_box_of_blenders_scenes(dataset):
    method = RayGauss(train_dataset=dataset, config_overrides=SMALL)
    parsed = method._pipeline.datamanager.train_dataparser_outputs
    assert float(parsed.dataparser_scale) == 1
    assert torch.equal(parsed.dataparser_transform[:, :3], torch.eye(3))
    assert float(parsed.scene_box.aabb.max()) == 1.5
    assert len(parsed.image_filenames) == len(dataset["image_paths"])  # none is kept for evaluation


def test_a_capture_is_normalised_and_rendered_from_the_same_places(dataset):
    overrides = {name: value for name, value in SMALL.items() if name != "object"}
    method = RayGauss(train_dataset=dataset, config_overrides=overrides)
    data = method._pipeline.datamanager
    outputs = data.train_dataparser_outputs
    made = nerfstudio_camera(dataset["cameras"][1], outputs.dataparser_transform, float(outputs.dataparser_scale))
    torch.testing.assert_close(
        made.camera_to_worlds[0], data.train_dataset.cameras.camera_to_worlds[1], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [({"pipeline.model.nothing": 1}, "there is no field nothing"), ({"nowhere.x": 1}, "there is no field nowhere")],
)
def test_fields_that_do_not_exist(dataset, overrides, said):
    with pytest.raises(UserError, match=said):
        InstantNGPHardMine(train_dataset=dataset, config_overrides=overrides)
    with pytest.raises(UserError, match="both are None"):
        RayGauss()


def test_the_other_method_is_chosen_by_a_preset(dataset):
    fields = {"object": True, "method": "instant-ngp-hardmine-bounded", "pipeline.model.background_color": "white"}
    method = object.__new__(InstantNGPHardMine)
    method._checkpoint, method._overrides = None, fields
    config = method._configuration()
    assert config.method_name == "instant-ngp-hardmine-bounded"
    assert config.pipeline.model.background_color == "white"


class TestDataset:
    def test_axes(self):
        pose = np.arange(12.0).reshape(1, 3, 4)
        turned = gl_poses(pose)
        assert turned[0, :, 0].tolist() == pose[0, :, 0].tolist()
        assert turned[0, :, 1].tolist() == (-pose[0, :, 1]).tolist()
        assert turned[0, :, 3].tolist() == pose[0, :, 3].tolist()

    def test_distortion_and_points(self, tmp_path):
        values = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # k1 k2 p1 p2 k3 k4
        made = cameras(np.eye(4)[None, :3], model=2, distortion=values)
        points = {"points3D_xyz": np.array([[1.0, 2, 3]]), "points3D_rgb": np.array([[9, 8, 7]])}
        write_dataset({"cameras": made, "image_paths": ["a.png"], **points}, tmp_path)
        meta = json.loads((tmp_path / "transforms.json").read_text())
        (frame,) = meta["frames"]
        assert meta["camera_model"] == "OPENCV_FISHEYE"
        assert [frame[name] for name in ("k1", "k2", "k3", "k4")] == pytest.approx([0.1, 0.2, 0.5, 0.6])
        assert (frame["w"], frame["h"], frame["cy"]) == (24, 20, 10.5)
        assert read_ply(tmp_path / meta["ply_file_path"]).columns["green"].tolist() == [8]
        camera = nerfstudio_camera(made[0], torch.eye(4)[:3], 1.0)
        assert camera.distortion_params[0].tolist() == pytest.approx([0.1, 0.2, 0.5, 0.6, 0.3, 0.4])
        assert int(camera.camera_type[0]) == CameraType.FISHEYE.value

    @pytest.mark.parametrize(("models", "said"), [([3], "'full_opencv' can't be used"), ([0, 1], "several models")])
    def test_cameras_that_cannot_be_used(self, models, said, tmp_path):
        made = cameras(np.tile(np.eye(4)[:3], (len(models), 1, 1)))
        made.camera_models[:] = models
        with pytest.raises(UserError, match=said):
            write_dataset({"cameras": made, "image_paths": ["a.png"] * len(models)}, tmp_path)
