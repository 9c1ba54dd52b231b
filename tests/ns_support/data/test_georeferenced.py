"""Scenes far from the origin: poses are told apart, and results lead back to the coordinates of the data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ns_support.auto_data import AutoDataParserConfig
from ns_support.data.poses import checked_poses, common_offset
from ns_support.errors import UserError

OFFSET = np.array([453212.25, 5412345.5, 512.0])


with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    from captures.colmap import colmap
    from captures.sphere import pose
    from captures.writing import ANGLE, capture, frames


def shifted(i):
    matrix = pose(i)
    matrix[:3, 3] += OFFSET
    return matrix


@pytest.mark.parametrize("kind", ["nerfstudio", "instant-ngp", "colmap"])
def test_the_saved_transform_leads_back(kind, tmp_path):
    if kind == "colmap":
        colmap("PINHOLE", (), poses=shifted)(tmp_path)
    else:
        angle = {} if kind == "nerfstudio" else {"fl_x": None, "fl_y": None, "camera_model": None, "aabb_scale": 4}
        listed = frames()
        for i, frame in enumerate(listed):
            frame["transform_matrix"] = shifted(i).tolist()
        capture(frames=listed, camera_angle_x=ANGLE, **angle)(tmp_path)
    outputs = AutoDataParserConfig(data=tmp_path).setup().get_dataparser_outputs("train")
    outputs.save_dataparser_transform(tmp_path / "out.json")
    saved = json.loads((tmp_path / "out.json").read_text())
    matrix, scale = np.array(saved["transform"]), saved["scale"]
    poses = outputs.cameras.camera_to_worlds
    back = outputs.transform_poses_to_original_space(poses, "opengl")
    for own, world, path in zip(poses, back, outputs.image_filenames, strict=True):
        wanted = shifted(int(path.stem))[:3, 3]
        by_hand = matrix[:, :3].T @ (own[:, 3].double().numpy() / scale - matrix[:, 3])
        np.testing.assert_allclose(by_hand, wanted, atol=1e-2)
        np.testing.assert_allclose(world[:, 3].numpy(), wanted, atol=1e-2)


def test_near_positions_stay_as_they_are():
    near = np.array([[0.0, 1, 2], [3, 4, 50]])
    assert not common_offset(near, "a file").any()
    poses = np.tile(np.eye(4), (2, 1, 1))
    assert checked_poses(poses, ["a", "b"], "a file") is poses


def test_positions_beyond_double_precision_are_refused():
    with pytest.raises(UserError, match="too far for the numbers"):
        common_offset(np.array([[1e300, 0, 0], [1e300, 1, 0]]), "a file")


def test_points_move_with_the_cameras(tmp_path):
    listed = frames()
    for i, frame in enumerate(listed):
        frame["transform_matrix"] = shifted(i).tolist()
    capture(frames=listed, ply_file_path="points.ply")(tmp_path)
    header = "".join(f"property double {a}\n" for a in "xyz")
    rows = " ".join(map(repr, OFFSET.tolist()))
    (tmp_path / "points.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 1\n{header}end_header\n{rows}\n")
    config = AutoDataParserConfig(data=tmp_path)
    config.nerfstudio.load_3D_points = True
    outputs = config.setup().get_dataparser_outputs("train")
    # The middle of the cameras' circle, seen from the poses: 3 units before each camera.
    (point,) = outputs.metadata["points3D_xyz"]
    distances = torch.linalg.vector_norm(outputs.cameras.camera_to_worlds[:, :, 3] - point, dim=-1)
    torch.testing.assert_close(distances / outputs.dataparser_scale, torch.full((11,), 3.0), rtol=1e-4, atol=1e-4)
