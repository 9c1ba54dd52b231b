import sys

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from hardmine_ns.data import RayDataManagerConfig
from ns_support.auto_data import AutoDataParserConfig
from ns_support.data.ply import write_ply
from ns_support.data.points import in_scene, read_points
from ns_support.errors import UserError
from ns_support.full_images import FullImagesConfig

POSITIONS = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]], np.float32)


@pytest.fixture
def without_open3d(monkeypatch):
    """As on a machine without libusb, where importing Open3D fails."""
    monkeypatch.setitem(sys.modules, "open3d", None)


def write(path, positions=POSITIONS, **colors):
    write_ply(path, {axis: positions[:, i] for i, axis in enumerate("xyz")} | colors)
    return path


def bytes_of(*values):
    return {name: np.array(values, np.uint8) for name in ("red", "green", "blue")}


@pytest.mark.usefixtures("without_open3d")
@pytest.mark.parametrize("named", [False, True], ids=["auto-data", "nerfstudio-data"])
@pytest.mark.parametrize("method", [FullImagesConfig, RayDataManagerConfig])
def test_scenes_with_points_load_without_open3d(method, named, nerfstudio_scene):
    folder = nerfstudio_scene(5, ply_file_path="points.ply")
    write(folder / "points.ply", **bytes_of(1, 2, 255))
    own = NerfstudioDataParserConfig(
        auto_scale_poses=False, orientation_method="none", center_method="none", load_3D_points=True
    )
    config = method(data=folder, dataparser=own if named else AutoDataParserConfig(nerfstudio=own))
    metadata = config.setup(device="cpu").train_dataparser_outputs.metadata
    torch.testing.assert_close(metadata["points3D_xyz"], torch.from_numpy(POSITIONS))
    assert metadata["points3D_rgb"].tolist() == [[1] * 3, [2] * 3, [255] * 3]
    assert config.dataparser._target.__module__.startswith(("nerfstudio.", "ns_support.auto_data"))


@pytest.mark.usefixtures("without_open3d")
def test_blender_scenes_with_points_load_without_open3d(blender_scene):
    folder = blender_scene(train=3, val=1)
    write(folder / "points.ply")
    own = BlenderDataParserConfig(ply_path="points.ply", scale_factor=2.0)
    metadata = FullImagesConfig(data=folder, dataparser=own).setup(device="cpu").train_dataparser_outputs.metadata
    torch.testing.assert_close(metadata["points3D_xyz"], 2 * torch.from_numpy(POSITIONS))
    assert metadata["points3D_rgb"].shape == (0, 3)


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        ({"red": np.array([0, 128, 255], np.uint8)}, [0, 128, 255]),
        ({"red": np.array([0, 32896, 65535], np.uint16)}, [0, 128, 255]),
        ({"red": np.array([0, 0.5, 1], np.float32)}, [0, 128, 255]),
        ({"red": np.array([0, 128, 255], np.float32)}, [0, 128, 255]),
        ({"diffuse_red": np.array([0, 128, 255], np.uint8)}, [0, 128, 255]),
        ({"f_dc_0": np.array([-0.5, 0.0, 0.5], np.float32) / 0.28209479}, [0, 128, 255]),
    ],
)
def test_colors(colors, expected, tmp_path):
    (name, values), *_ = colors.items()
    others = ("f_dc_1", "f_dc_2") if name == "f_dc_0" else (name.replace("red", "green"), name.replace("red", "blue"))
    path = write(tmp_path / "points.ply", **{name: values}, **dict.fromkeys(others, values))
    assert read_points(path).colors[:, 0].tolist() == expected


def test_points_that_are_not_finite_are_left_out_and_counted(tmp_path, capsys):
    positions = POSITIONS.copy()
    positions[1, 2] = np.nan
    found = read_points(write(tmp_path / "points.ply", positions, **bytes_of(1, 2, 3)))
    assert found.positions.tolist() == POSITIONS[[0, 2]].tolist()
    assert found.colors[:, 0].tolist() == [1, 3]
    assert "1 of the 3 points" in " ".join(capsys.readouterr().out.split())


def test_nothing_to_read(tmp_path, capsys):
    assert read_points(tmp_path / "no.ply") is None
    assert read_points(write(tmp_path / "points.ply", POSITIONS[:0])) is None
    said = " ".join(capsys.readouterr().out.split())
    assert "There is no" in said
    assert "no point in" in said


def test_a_file_without_positions_is_refused(tmp_path):
    write_ply(tmp_path / "points.ply", {"x": np.zeros(2, np.float32)})
    with pytest.raises(UserError, match="lacks the vertex properties y, z"):
        read_points(tmp_path / "points.ply")


def test_large_coordinates_are_moved_before_they_are_rounded(tmp_path):
    far = np.array([[5e6, 5e6, 0.0], [5e6 + 0.25, 5e6, 0.0]])
    transform = torch.tensor([[1.0, 0, 0, -5e6], [0, 1, 0, -5e6], [0, 0, 1, 0]])
    moved = in_scene(read_points(write(tmp_path / "points.ply", far)), transform, 2.0)["points3D_xyz"]
    assert moved.tolist() == [[0, 0, 0], [0.5, 0, 0]]
