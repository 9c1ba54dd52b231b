import json
import sys

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from ns_support.auto_data import AutoDataParserConfig
from ns_support.ply import write_ply
from ns_support.sfm_points import read_points
from raygauss_ns.method import raygauss

XYZ = {name: np.arange(4, dtype=np.float32) + i for i, name in enumerate("xyz")}


@pytest.fixture(autouse=True)
def without_open3d(monkeypatch):
    """As on a machine without libusb, where importing it fails."""
    monkeypatch.setitem(sys.modules, "open3d", None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 1, 128, 255], np.uint8), [0, 1, 128, 255]),
        (np.array([0, 256, 65535, 32768], np.uint16), [0, 1, 255, 128]),
        (np.array([0.0, 0.5, 1.0, 2.0], np.float32), [0, 128, 255, 255]),
    ],
    ids=["8 bits", "16 bits", "float"],
)
@pytest.mark.parametrize("names", [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue")])
def test_colors(tmp_path, values, expected, names):
    write_ply(tmp_path / "a.ply", XYZ | dict.fromkeys(names, values))
    positions, colors = read_points(tmp_path / "a.ply")
    assert positions.tolist() == [[i, i + 1, i + 2] for i in range(4)]
    assert colors.tolist() == [[value] * 3 for value in expected]


def test_points_without_colors(tmp_path):
    write_ply(tmp_path / "a.ply", XYZ)
    positions, colors = read_points(tmp_path / "a.ply")
    assert (len(positions), len(colors)) == (4, 0)


def test_points_that_are_not_finite_are_left_out_and_counted(tmp_path, capsys):
    broken = XYZ | {"y": np.array([0, np.nan, np.inf, 3], np.float32), "red": np.arange(4, dtype=np.uint8)}
    write_ply(tmp_path / "a.ply", broken | {name: broken["red"] for name in ("green", "blue")})
    positions, colors = read_points(tmp_path / "a.ply")
    assert positions.tolist() == [[0, 0, 2], [3, 3, 5]]
    assert colors[:, 0].tolist() == [0, 3]
    assert "2 of the 4 points" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("columns", [None, {"a": np.zeros(3, np.float32)}, {k: v[:0] for k, v in XYZ.items()}])
def test_a_file_without_points_is_said(tmp_path, columns, capsys):
    if columns is not None:
        write_ply(tmp_path / "a.ply", columns)
    assert read_points(tmp_path / "a.ply") is None
    assert "going on without" in " ".join(capsys.readouterr().out.split())


def test_nerfstudios_transform_is_applied(nerfstudio_scene):
    """As to the cameras: a point at a camera stays there."""
    folder = nerfstudio_scene(5, ply_file_path="points.ply")
    own = NerfstudioDataParserConfig(auto_scale_poses=False, scale_factor=0.5, load_3D_points=True)
    config = AutoDataParserConfig(data=folder, nerfstudio=own)
    given = [frame["transform_matrix"] for frame in json.loads((folder / "transforms.json").read_text())["frames"]]
    centers = np.array(given, np.float32)[:, :3, 3]
    write_ply(folder / "points.ply", {name: centers[:, i].copy() for i, name in enumerate("xyz")})
    outputs = config.setup().get_dataparser_outputs("train")
    camera = outputs.cameras.camera_to_worlds[0, :, 3]
    assert torch.linalg.vector_norm(outputs.metadata["points3D_xyz"] - camera, dim=-1).min() < 1e-6


def test_blenders_points(blender_scene):
    folder = blender_scene(train=2)
    write_ply(folder / "points.ply", XYZ)
    config = AutoDataParserConfig(data=folder)
    config.blender.ply_path = "points.ply"
    metadata = config.setup().get_dataparser_outputs("train").metadata
    assert metadata["points3D_xyz"].shape == (4, 3)


def test_a_set_up_changes_nothing_in_the_configuration(blender_scene):
    """`ns-render` sets a run's datamanager up a second time, for the images: of the size that was trained on."""
    config = raygauss.config.pipeline.datamanager
    data, factor = config.data, config.dataparser.downscale_factor
    try:
        config.data, config.dataparser.downscale_factor = blender_scene(train=2, test=1), None
        config.dataparser.data = config.data
        before = repr(config)
        config.setup(device="cpu", test_mode="inference")
        assert repr(config) == before
    finally:
        config.data, config.dataparser.downscale_factor = data, factor
