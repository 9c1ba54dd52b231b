import json

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.cameras.camera_utils import get_distortion_params
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from ns_support import full_images
from ns_support.auto_data import AutoDataParserConfig
from ns_support.data.dataset import CheckedDataset
from ns_support.data.store import downscaled_image
from ns_support.errors import UserError
from ns_support.full_images import FullImages, FullImagesConfig
from ns_support.lenses.triangulation import Points

from .conftest import FOCAL, HEIGHT, WIDTH

# As they are, so that cameras in the tests keep the poses they were given.
AS_GIVEN = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}


def start(folder, parser=None, **config):
    parser = parser or NerfstudioDataParserConfig(eval_mode="all", **AS_GIVEN)
    return FullImagesConfig(data=folder, dataparser=parser, **config).setup(device="cpu")


@pytest.mark.parametrize("cache", ["cpu", "gpu"])
def test_serves_every_image_once_without_cuda(nerfstudio_scene, cache):
    datamanager = start(nerfstudio_scene(4), cache_images=cache)
    assert datamanager.dataset_type is CheckedDataset
    served = [datamanager.next_train(step) for step in range(4)]
    assert sorted(batch["image_idx"] for _, batch in served) == [0, 1, 2, 3]
    assert all(camera.shape == (1,) and batch["image"].shape == (HEIGHT, WIDTH, 3) for camera, batch in served)
    assert [batch["image_idx"] for _, batch in datamanager.fixed_indices_eval_dataloader] == [0, 1, 2, 3]


def test_a_resumed_run_sees_the_images_that_come_next(nerfstudio_scene):
    folder = nerfstudio_scene(4)
    whole = start(folder)
    order = [whole.next_train(step)[1]["image_idx"] for step in range(11)]
    assert order[:4] != order[4:8]  # shuffled anew
    for at in (1, 4, 6):
        resumed = start(folder)
        assert [resumed.next_train(step)[1]["image_idx"] for step in range(at, 11)] == order[at:]


def test_processes_divide_the_sequence(nerfstudio_scene):
    """Two processes with two images each in a step, resumed at step 1: together the sequence of one."""
    folder = nerfstudio_scene(5)
    whole = start(folder)
    order = [whole.next_train(0)[1]["image_idx"] for _ in range(12)]
    for begin in (0, 1):
        parts = []
        for rank in range(2):
            part = start(folder)
            part.divide(4, rank, 2)
            parts.append([part.next_train(begin + i // 2)[1]["image_idx"] for i in range(6 - 2 * begin)])
        assert [index for pair in zip(*parts, strict=True) for index in pair] == order[4 * begin :]


def test_over_500_images_force_the_cpu_cache_and_still_load(nerfstudio_scene):
    one = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    datamanager = start(nerfstudio_scene(501, images=[one] * 501))
    assert datamanager.config.cache_images == "cpu"
    assert datamanager.next_train(0)[1]["image"].shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("cache", ["cpu", "gpu"])
def test_masks_come_along(nerfstudio_scene, cache):
    datamanager = start(nerfstudio_scene(2, masks=True, k1=0.05), cache_images=cache)
    batches = [datamanager.next_train(0)[1], datamanager.next_eval_image(0)[1]]
    batches += [batch for _, batch in datamanager.fixed_indices_eval_dataloader]
    for batch in batches:
        mask = batch["mask"]
        assert (mask.dtype, mask.shape) == (torch.bool, (*batch["image"].shape[:2], 1))
        assert mask[:, :3].all()
        assert not mask[:, -3:].any()


def test_exporters_get_rays_without_an_image_being_loaded(nerfstudio_scene):
    datamanager = start(nerfstudio_scene(3, k1=0.1))
    datamanager.train_pixel_sampler.num_rays_per_batch = 4 * WIDTH
    served = [datamanager.next_train(0) for _ in range(6)]
    assert sorted(batch["image_idx"] for _, batch in served[:3]) == [0, 1, 2]
    assert all(rays.shape == (4, WIDTH) for rays, _ in served)
    assert "cached_train" not in vars(datamanager)


def test_the_cache_is_not_changed_by_who_takes_from_it(nerfstudio_scene):
    datamanager = start(nerfstudio_scene(1))
    datamanager.next_train(0)[1].pop("image")
    assert "image" in datamanager.next_train(1)[1]


class TestEmptyEvalSplit:
    @pytest.fixture
    def datamanager(self, nerfstudio_scene):
        parser = NerfstudioDataParserConfig(eval_mode="fraction", train_split_fraction=1.0, **AS_GIVEN)
        return start(nerfstudio_scene(3), parser)

    def test_trains(self, datamanager):
        assert not datamanager.eval_dataset  # what nerfstudio's trainer asks before it evaluates
        assert datamanager.next_train(0)[1]["image"].shape == (HEIGHT, WIDTH, 3)

    def test_evaluating_ends_in_a_sentence(self, datamanager):
        with pytest.raises(UserError, match="no image to evaluate on in the val split"):
            datamanager.next_eval_image(0)
        assert len(datamanager.fixed_indices_eval_dataloader) == 0
        with pytest.raises(UserError, match="no image to evaluate on in the val split"):
            list(datamanager.fixed_indices_eval_dataloader)


def test_the_viewer_may_read_every_property_without_loading_an_image(blender_scene):
    datamanager = start(blender_scene(train=1, val=1), BlenderDataParserConfig())
    assert len(datamanager.fixed_indices_eval_dataloader) == 1
    assert "cached_eval" not in vars(datamanager)


@pytest.mark.parametrize(
    ("kind", "model", "distortion"),
    [
        (CameraType.PERSPECTIVE, "OPENCV", {"k1": 0.1, "k2": -0.05, "p1": 0.002, "p2": -0.003}),
        (CameraType.FISHEYE, "OPENCV_FISHEYE", {"k1": 0.05, "k2": -0.01}),
        (CameraType.FISHEYE, "OPENCV_FISHEYE", {}),
        (CameraType.EQUIRECTANGULAR, "EQUIRECTANGULAR", {}),
    ],
)
@pytest.mark.parametrize("cache", ["cpu", "gpu"])
def test_images_and_cameras_stay_as_they_are(nerfstudio_scene, kind, model, distortion, cache):
    photograph = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    datamanager = start(nerfstudio_scene(2, images=[photograph] * 2, camera_model=model, **distortion), None)
    datamanager.config.cache_images = cache
    served = [
        datamanager.next_train(0),
        datamanager.next_eval_image(0),
        next(iter(datamanager.fixed_indices_eval_dataloader)),
    ]
    for camera, batch in served:
        assert camera.camera_type.item() == kind.value
        torch.testing.assert_close(camera.distortion_params[0], get_distortion_params(**distortion))
        assert (camera.fx.item(), camera.width.item(), camera.height.item()) == (FOCAL, WIDTH, HEIGHT)
        assert (255 * batch["image"]).round().to(torch.uint8).equal(torch.from_numpy(photograph))
    for dataset in (datamanager.train_dataset, datamanager.eval_dataset):
        torch.testing.assert_close(dataset.cameras.distortion_params[1], get_distortion_params(**distortion))


def test_a_fisheyes_circle_shrinks_with_the_image(nerfstudio_scene):
    folder = nerfstudio_scene(1, camera_model="OPENCV_FISHEYE", k1=0.05, fisheye_crop_radius=10.0)
    mask = start(folder, camera_res_scale_factor=0.5).next_train(0)[1]["mask"][HEIGHT // 4, :, 0]
    assert mask.sum() == 9


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_outside_a_fisheyes_circle_is_masked(nerfstudio_scene, masks):
    folder = nerfstudio_scene(2, masks=masks, camera_model="OPENCV_FISHEYE", k1=0.05, fisheye_crop_radius=10.0)
    mask = start(folder).next_train(0)[1]["mask"]
    assert (mask.dtype, mask.shape) == (torch.bool, (HEIGHT, WIDTH, 1))
    middle = mask[HEIGHT // 2, :, 0]
    assert middle[WIDTH // 2 - 9 : WIDTH // 2].all()
    assert bool(middle[WIDTH // 2 + 9]) is not masks  # the written masks hide the right half
    assert not middle[: WIDTH // 2 - 10].any()
    assert not mask[0].any()


def test_a_failure_to_load_leaves_the_cameras_alone(nerfstudio_scene):
    folder = nerfstudio_scene(2, k1=0.1)
    datamanager = start(folder, triangulated_points=0)
    (folder / "image_1.png").unlink()
    with pytest.raises(UserError):
        datamanager.next_train(0)
    assert datamanager.train_dataset.cameras.distortion_params.any()


@pytest.mark.parametrize("memory", [4.0, 1e-6])
def test_smaller_images_are_served_with_cameras_and_masks_to_match(nerfstudio_scene, memory):
    folder = nerfstudio_scene(3, k1=0.1, masks=True)
    datamanager = start(folder, triangulated_points=0, image_memory=memory)
    whole = {}
    for downscales in (1, 1, 1, 0, 0, 0):
        datamanager.downscales = downscales
        camera, batch = datamanager.next_train(0)
        rows, columns = HEIGHT >> downscales, WIDTH >> downscales
        assert batch["image"].shape[:2] == batch["mask"].shape[:2] == (rows, columns)
        assert (int(camera.height), int(camera.width), float(camera.fx)) == (rows, columns, FOCAL / 2**downscales)
        whole[batch["image_idx"], downscales] = batch["image"]
        assert camera.metadata["cam_idx"] == batch["image_idx"]
    for index in range(3):
        assert torch.equal(whole[index, 1], downscaled_image(whole[index, 0], 2))


def test_the_next_image_is_decoded_ahead(nerfstudio_scene):
    datamanager = start(nerfstudio_scene(4), triangulated_points=0, image_memory=1e-6)
    expected, store = [], datamanager.cached_train
    store.expect = lambda index, factor: expected.append((index, factor))
    datamanager.downscales = 1
    served = [datamanager.next_train(step)[1]["image_idx"] for step in range(9)]
    assert expected[:-1] == [(index, 2) for index in served[1:]]


def test_images_that_do_not_fit_are_said(nerfstudio_scene, capsys):
    start(nerfstudio_scene(2), triangulated_points=0, image_memory=1e-6).next_train(0)
    assert "--pipeline.datamanager.image-memory 1e-06" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"image-memory .*positive"):
        start(nerfstudio_scene(2), triangulated_points=0, image_memory=0.0)


def test_an_image_that_was_replaced_is_named(nerfstudio_scene):
    folder = nerfstudio_scene(1)
    datamanager = start(folder, triangulated_points=0)
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8)).save(folder / "image_0.png")
    with pytest.raises(UserError, match=r"image_0\.png is 42 x 30 pixels and its camera 40 x 30: was it replaced"):
        datamanager.next_train(0)


def test_points_are_triangulated_when_there_are_none(nerfstudio_scene, capsys):
    start(nerfstudio_scene(3))
    said = " ".join(capsys.readouterr().out.split())
    assert "no SfM points: looking for points in its 3 images. Only 0 were found" in said


def test_points_are_asked_for_where_the_scene_names_them_and_nobody_is_asked(nerfstudio_scene):
    """nerfstudio asks on the terminal what to do with a COLMAP model whose points are in no file."""
    folder = nerfstudio_scene(2)
    (folder / "colmap/sparse/0").mkdir(parents=True)
    for parser in (None, AutoDataParserConfig(nerfstudio=NerfstudioDataParserConfig(**AS_GIVEN))):
        assert "points3D_xyz" not in start(folder, parser).train_dataparser_outputs.metadata
    vertices = "".join(f"{i} {i} {i} 9 9 9\n" for i in range(3))
    fields = "".join(
        f"property {kind} {name}\n"
        for kind, names in (("float", "xyz"), ("uchar", ("red", "green", "blue")))
        for name in names
    )
    (folder / "points.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 3\n{fields}end_header\n{vertices}")
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps(meta | {"ply_file_path": "points.ply"}))
    for parser in (None, AutoDataParserConfig(nerfstudio=NerfstudioDataParserConfig(**AS_GIVEN))):
        assert start(folder, parser).train_dataparser_outputs.metadata["points3D_xyz"].shape == (3, 3)


def test_images_may_be_a_pixel_larger_or_smaller_than_their_cameras(nerfstudio_scene):
    sizes = [(HEIGHT, WIDTH + 1), (HEIGHT - 1, WIDTH)]
    folder = nerfstudio_scene(2, images=[np.zeros((*size, 3), np.uint8) for size in sizes])
    datamanager = start(folder, triangulated_points=0)
    served = [datamanager.next_train(0), datamanager.next_train(1), *datamanager.fixed_indices_eval_dataloader]
    for camera, batch in served:
        assert batch["image"].shape[:2] == (camera.height.item(), camera.width.item()) == sizes[batch["image_idx"]]
        assert camera.fx.item() == FOCAL


def test_images_of_another_size_are_an_error(nerfstudio_scene):
    folder = nerfstudio_scene(1, images=[np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8)])
    with pytest.raises(UserError, match=r"image_0\.png is 42 x 30 pixels and its camera 40 x 30"):
        start(folder, triangulated_points=0)


def test_config_survives_yaml():
    config = FullImagesConfig()
    text = yaml.dump(config)
    assert "lambda" not in text
    assert yaml.load(text, Loader=yaml.Loader)._target is FullImages


@pytest.mark.parametrize(
    ("found", "most", "expected"), [(150, 1000, 150), (150, 120, 120), (99, 1000, None), (150, 0, None)]
)
def test_a_capture_without_points_gets_triangulated_ones(nerfstudio_scene, monkeypatch, found, most, expected):
    points = Points(torch.arange(3.0 * found).view(-1, 3), torch.full((found, 3), 7, dtype=torch.uint8))
    monkeypatch.setattr(full_images, "triangulated_points", lambda *_, **__: points)
    metadata = start(nerfstudio_scene(4), triangulated_points=most).train_dataparser_outputs.metadata
    if expected is None:
        assert "points3D_xyz" not in metadata
    else:
        assert metadata["points3D_xyz"].shape == metadata["points3D_rgb"].shape == (expected, 3)
        assert len(torch.unique(metadata["points3D_xyz"], dim=0)) == expected


def test_nothing_is_triangulated_for_a_look_at_a_trained_scene_or_an_object(
    nerfstudio_scene, blender_scene, monkeypatch
):
    monkeypatch.setattr(full_images, "triangulated_points", lambda *_, **__: pytest.fail("not wanted"))
    parser = NerfstudioDataParserConfig(eval_mode="all", **AS_GIVEN)
    start(nerfstudio_scene(4), parser, resumes=True)
    FullImagesConfig(data=nerfstudio_scene(4), dataparser=parser).setup(device="cpu", test_mode="inference")
    far = BlenderDataParserConfig(scale_factor=1.0)
    folder = blender_scene(train=2, val=1)
    for path in folder.glob("transforms_*.json"):
        path.write_text(path.read_text().replace("[0.0, 0.0, 1.0, 0.0]", "[0.0, 0.0, 1.0, 4.0]"))
    start(folder, far)
