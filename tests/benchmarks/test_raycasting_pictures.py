"""What the pictures of docs/raycasting.md rest on: images through exact lenses, and the figures of a turn."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ns_support.lenses.lens import LensType, make_lens


@pytest.fixture(scope="module")
def wide(script):
    return script("raycasting.wide")


@pytest.fixture(scope="module")
def popping(script):
    return script("raycasting.popping")


def test_a_pinholes_image_is_that_of_make_scene(wide):
    import make_scene

    pose = make_scene.look_at_origin(0.7, 0.5)
    focal = 8 / math.tan(make_scene.CAMERA_ANGLE_X / 2)
    drawn = wide.draw(make_lens(LensType.PERSPECTIVE, (focal, focal), (8.0, 8.0), (16, 16)), pose)
    expected = make_scene.draw(pose, 16, wide.SAMPLES).astype(float)
    alpha = expected[..., 3:] / 255
    expected = expected[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(drawn - expected).max() <= 2
    assert drawn.std() > 20


def test_what_is_behind_a_pinhole_is_not_in_its_image(wide):
    """A camera above the dish that looks up sees the sky, although the dish is within the sphere that is traced."""
    pose = np.eye(4)
    pose[:3] = np.array([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0.4]])
    lens = make_lens(LensType.PERSPECTIVE, (30.0, 30.0), (8.0, 8.0), (16, 16))
    assert (wide.draw(lens, pose) == 255).all()
    pose[:3, 1:3] *= -1
    assert (wide.draw(lens, pose) < 255).any()


def test_a_scene_of_a_wide_lens(wide, tmp_path):
    lens = make_lens(LensType.EQUIRECTANGULAR, (8.0, 8.0), (8.0, 4.0), (16, 8))
    wide.write_scene(tmp_path / "scene", wide.WideLens("small", "EQUIRECTANGULAR", lens), 3, 2, seed=1)
    written = json.loads((tmp_path / "scene" / "transforms.json").read_text())
    assert written["train_filenames"] == ["000.png", "001.png", "002.png"]
    assert written["test_filenames"] == ["003.png", "004.png"]
    assert (written["fl_x"], written["fl_y"], written["w"], written["h"]) == (8, 8, 16, 8)
    for frame in written["frames"]:
        rotation = np.array(frame["transform_matrix"])[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert np.asarray(Image.open(tmp_path / "scene" / frame["file_path"])).shape == (8, 16, 3)


def test_the_figures_of_a_turn(popping):
    frames = np.zeros((4, 2, 2, 3), np.float32)
    frames[1:, 0, 0, 1] = 0.2  # 51 of 255 in one of four pixels, once
    frames[:, 1, 1, 2] = np.array([0, 1, 2, 3]) * 4 / 255  # 4 in each frame
    subject = popping.crossing_discs(3)
    row, same = popping.rows_of(subject, popping.Turn(frames, frames))
    assert {key: row[key] for key in row if key != "rendered"} == {key: same[key] for key in same if key != "rendered"}
    assert row["pairs of frames"] == 3
    assert float(row["worst pair's mean"]) == pytest.approx((51 + 4) / 4)
    assert float(row["median pair's mean"]) == pytest.approx(1)
    assert float(row["largest of a pixel"]) == 51


def test_both_ways_show_the_same_discs(popping, monkeypatch):
    monkeypatch.setattr(popping, "SIDE", 40)
    monkeypatch.setattr(popping, "FOCAL", 46.0)
    with torch.random.fork_rng():
        shown = popping.turn(popping.crossing_discs(1), frames=2)
    assert shown.cast.shape == shown.splatted.shape == (2, 40, 40, 3)
    assert shown.cast.min() < 0.7
    assert np.abs(shown.cast - shown.splatted).mean() < 0.05
