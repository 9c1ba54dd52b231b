import numpy as np
import pytest
import torch
import yaml
from nerfstudio.cameras.camera_utils import get_distortion_params
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset

from ns_support.errors import UserError
from ns_support.full_images import FullImages, FullImagesConfig

from .conftest import FOCAL, HEIGHT, WIDTH

# As they are, so that cameras in the tests keep the poses they were given.
AS_GIVEN = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}


def start(folder, parser=None, **config):
    parser = parser or NerfstudioDataParserConfig(eval_mode="all", **AS_GIVEN)
    return FullImagesConfig(data=folder, dataparser=parser, **config).setup(device="cpu")


@pytest.mark.parametrize("cache", ["cpu", "gpu"])
def test_serves_every_image_once_without_cuda(nerfstudio_scene, cache):
    datamanager = start(nerfstudio_scene(4), cache_images=cache)
    assert datamanager.dataset_type is InputDataset
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


def colour_of_directions(camera):
    """An image that shows each pixel's ray direction as a colour: it fits only the camera that took it."""
    return 0.5 + 0.5 * camera.generate_rays(0, keep_shape=True).directions


@pytest.mark.parametrize(
    ("camera_type", "model", "distortion"),
    [
        (CameraType.PERSPECTIVE, "OPENCV", {"k1": 0.1, "k2": -0.05, "p1": 0.002, "p2": -0.003}),
        (CameraType.FISHEYE, "OPENCV_FISHEYE", {"k1": 0.05, "k2": -0.01}),
    ],
)
def test_rays_fit_the_undistorted_pixels(nerfstudio_scene, camera_type, model, distortion):
    taken_by = Cameras(
        camera_to_worlds=torch.eye(4)[None, :3],
        fx=FOCAL,
        fy=FOCAL,
        cx=WIDTH / 2,
        cy=HEIGHT / 2,
        width=WIDTH,
        height=HEIGHT,
        distortion_params=get_distortion_params(**distortion)[None],
        camera_type=camera_type,
    )
    photograph = (255 * colour_of_directions(taken_by)).round().to(torch.uint8).numpy()
    folder = nerfstudio_scene(2, images=[photograph] * 2, camera_model=model, **distortion)
    datamanager = start(folder)
    served = [
        datamanager.next_train(0),
        datamanager.next_eval_image(0),
        next(iter(datamanager.fixed_indices_eval_dataloader)),
    ]
    for camera, batch in served:
        assert camera.camera_type.item() == CameraType.PERSPECTIVE.value
        assert not camera.distortion_params.any()
        difference = (colour_of_directions(camera) - batch["image"]).abs()
        # OpenCV blends the outermost pixels with the black beyond the photograph.
        assert difference[1:-1, 1:-1].max() < 0.005


def test_a_fisheye_without_distortion_stays_one(nerfstudio_scene):
    datamanager = start(nerfstudio_scene(1, camera_model="OPENCV_FISHEYE"))
    assert datamanager.next_train(0)[0].camera_type.item() == CameraType.FISHEYE.value


def test_config_survives_yaml():
    config = FullImagesConfig()
    text = yaml.dump(config)
    assert "lambda" not in text
    assert yaml.load(text, Loader=yaml.Loader)._target is FullImages
