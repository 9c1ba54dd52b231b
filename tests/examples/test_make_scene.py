import json
import math

import numpy as np
import pytest
from PIL import Image

COUNTS = {"train": 3, "val": 1, "test": 2}
SIZE = 32


@pytest.fixture(scope="module")
def make_scene(example):
    return example("make_scene")


@pytest.fixture(scope="module")
def shapes(example):
    return example("shapes")


@pytest.fixture(scope="module")
def scene(make_scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    make_scene.make_scene(folder, resolution=SIZE, samples=2, **COUNTS)
    return folder


def load(scene, split):
    meta = json.loads((scene / f"transforms_{split}.json").read_text())
    poses = [np.array(frame["transform_matrix"]) for frame in meta["frames"]]
    images = [np.asarray(Image.open(scene / (frame["file_path"] + ".png"))) for frame in meta["frames"]]
    return meta, poses, images


def project(make_scene, pose, point, size):
    """Column and row, in pixels, at which a camera sees a point."""
    x, y, z = pose[:3, :3].T @ (point - pose[:3, 3])
    focal = 0.5 * size / math.tan(0.5 * make_scene.CAMERA_ANGLE_X)
    return size / 2 - focal * x / z, size / 2 + focal * y / z


@pytest.mark.parametrize("split", COUNTS)
def test_files_are_those_of_a_blender_scene(scene, split):
    meta, _, images = load(scene, split)
    assert set(meta) == {"camera_angle_x", "frames"}
    assert meta["camera_angle_x"] == pytest.approx(0.6911)
    assert len(meta["frames"]) == COUNTS[split]
    assert all(set(frame) == {"file_path", "transform_matrix"} for frame in meta["frames"])
    assert all((image.shape, image.dtype) == ((SIZE, SIZE, 4), np.uint8) for image in images)


@pytest.mark.parametrize("split", COUNTS)
def test_cameras_stand_on_a_sphere_and_look_at_its_middle(make_scene, scene, split):
    _, poses, _ = load(scene, split)
    for pose in poses:
        rotation, position = pose[:3, :3], pose[:3, 3]
        assert rotation @ rotation.T == pytest.approx(np.eye(3))
        assert np.linalg.det(rotation) == pytest.approx(1.0)
        assert np.linalg.norm(position) == pytest.approx(4.0)
        assert -rotation[:, 2] == pytest.approx(-position / 4.0)  # OpenGL: a camera looks along its -z
        assert rotation[2, 1] > 0.0  # and its y points up
        assert project(make_scene, pose, np.zeros(3), SIZE) == pytest.approx((SIZE / 2, SIZE / 2))


def test_no_two_views_are_the_same(scene):
    positions = np.array([pose[:3, 3] for split in COUNTS for pose in load(scene, split)[1]])
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1) + 9.0 * np.eye(len(positions))
    assert distances.min() > 0.1


def test_background_is_transparent_and_shapes_are_solid(scene):
    _, _, images = load(scene, "train")
    for image in images:
        alpha = image[..., 3]
        assert not image[alpha == 0].any()
        assert {0, 255} <= set(alpha.ravel())
        assert 0.1 < (alpha == 255).mean() < 0.6
        assert 0 < ((alpha > 0) & (alpha < 255)).mean() < 0.2  # the outline is smooth
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert not border.any()  # nothing is cut off


def test_all_shapes_fit_the_unit_box(make_scene):
    side = np.linspace(-1.5, 1.5, 61, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side, side, indexing="ij")).reshape(3, -1)
    inside = grid[:, make_scene.distance_to_all(make_scene.SCENE, grid) < 0.0]
    assert inside.size
    assert np.abs(inside).max() <= 1.0
    assert np.linalg.norm(inside, axis=0).max() < make_scene.BOUND


def test_the_same_seed_gives_the_same_files(make_scene, scene, tmp_path):
    make_scene.make_scene(tmp_path, resolution=SIZE, samples=2, **COUNTS)
    names = sorted(path.relative_to(scene) for path in scene.rglob("*.*"))
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert all((scene / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_another_seed_moves_the_cameras(make_scene):
    poses = [next(make_scene.cameras("train", 3, seed)) for seed in (0, 1)]
    assert np.abs(poses[0] - poses[1]).max() > 0.01


@pytest.mark.parametrize("view", [(0.3, 0.2), (2.0, 0.7), (4.5, 1.2)])
def test_a_spheres_outline_is_the_one_that_geometry_gives(make_scene, shapes, view):
    radius, position, size = 0.5, np.array([0.3, -0.2, 0.1]), 64
    white = np.ones((3, 1), np.float32)
    ball = make_scene.Shape(lambda p: shapes.sphere(p, radius), lambda p: white, tuple(position))
    pose = make_scene.look_at_origin(*view)
    coverage = make_scene.draw(pose, size, samples=4, shapes=[ball])[..., 3] / 255.0

    # Independent of the renderer: a ray hits if it passes the centre within the radius.
    fine = 4 * size
    focal = 0.5 * fine / math.tan(0.5 * make_scene.CAMERA_ANGLE_X)
    row, column = np.mgrid[:fine, :fine] + 0.5
    local = np.stack([(column - fine / 2) / focal, (fine / 2 - row) / focal, -np.ones((fine, fine))], axis=-1)
    directions = local @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    to_ball = position - pose[:3, 3]
    passing = np.linalg.norm(np.cross(directions, to_ball), axis=-1)
    expected = (passing < radius).reshape(size, 4, size, 4).mean(axis=(1, 3))
    assert np.abs(coverage - expected).max() < 0.26  # a few of a border pixel's 16 rays
    assert coverage.mean() == pytest.approx(expected.mean(), rel=0.01)


def test_a_point_keeps_its_colour_in_every_view_that_sees_it(make_scene, shapes):
    """A red and a green half ball: points of known place on it are red or green wherever they are seen."""

    def two_colours(p):
        return np.where(p[2] > 0, np.array([[1], [0], [0]]), np.array([[0], [1], [0]])).astype(np.float32)

    ball = make_scene.Shape(lambda p: shapes.sphere(p, 0.8), two_colours, gloss=0.0)
    seen = 0
    for azimuth in (0.2, 2.3, 4.4):
        pose = make_scene.look_at_origin(azimuth, 0.3)
        image = make_scene.draw(pose, 64, samples=1, shapes=[ball]).astype(int)
        for around in np.linspace(0.0, 6.0, 13):
            for height in (-0.4, 0.4):
                out = math.sqrt(1.0 - height**2)
                normal = np.array([out * math.cos(around), out * math.sin(around), height])
                if normal @ (pose[:3, 3] / 4.0) < 0.4:
                    continue  # turned away
                column, row = project(make_scene, pose, 0.8 * normal, 64)
                red, green, _, alpha = image[int(row), int(column)]
                assert alpha == 255
                assert (red > green) == (height > 0)
                seen += 1
    assert seen > 20


def test_highlights_move_with_the_viewer(make_scene, shapes):
    point = make_scene.SUN * 0.4
    ball = make_scene.Shape(lambda p: shapes.sphere(p, 0.4), lambda p: np.full_like(p, 0.2), gloss=0.6)
    against = [-make_scene.unit(make_scene.SUN + shift) for shift in (0.0, np.array([[0.9], [0.0], [0.0]], np.float32))]
    bright, dull = (make_scene.shade([ball], point, direction.astype(np.float32)).mean() for direction in against)
    assert bright > 2.0 * dull


def test_nerfstudio_reads_it(scene):
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
    from nerfstudio.data.datasets.base_dataset import InputDataset

    outputs = BlenderDataParserConfig(data=scene).setup().get_dataparser_outputs("train")
    data = InputDataset(outputs)
    image = data.get_image_float32(0)
    assert len(data) == COUNTS["train"]
    assert image.shape == (SIZE, SIZE, 3)
    assert image[0, 0].tolist() == [1.0, 1.0, 1.0]
    assert outputs.cameras.fx[0].item() == pytest.approx(0.5 * SIZE / math.tan(0.5 * 0.6911), rel=1e-6)
