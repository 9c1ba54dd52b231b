"""Rays for training come from the images as they are."""

import json

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from tyro._docstrings import get_field_docstring

from hardmine_ns.data import MaskedPixelSamplerConfig, RayDataManagerConfig
from ns_support.errors import UserError


@pytest.mark.parametrize(
    ("model", "distortion"), [("OPENCV", {"k1": 0.1, "k2": -0.05, "p1": 0.002}), ("OPENCV_FISHEYE", {"k1": 0.05})]
)
def test_rays_of_distorted_cameras_are_exact(photos, expected_ray, model, distortion):
    folder = photos(4)
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps({**meta, **distortion, "camera_model": model}))
    config = RayDataManagerConfig(dataparser=NerfstudioDataParserConfig(data=folder, eval_mode="all"))
    datamanager = config.setup(device="cpu")
    for dataset, (rays, batch) in (
        (datamanager.train_dataset, datamanager.next_train(0)),
        (datamanager.eval_dataset, datamanager.next_eval(0)),
    ):
        assert dataset.cameras.distortion_params.any()
        assert torch.equal(rays.camera_indices, batch["indices"][:, :1])
        for i in range(20):
            camera, row, column = batch["indices"][i].tolist()
            _, direction = expected_ray(dataset.cameras[camera], row, column)
            np.testing.assert_allclose(rays.directions[i].numpy(), direction, atol=1.5e-7, rtol=0)


def test_patches_are_refused(photos):
    config = RayDataManagerConfig(dataparser=NerfstudioDataParserConfig(data=photos(2)), patch_size=8)
    with pytest.raises(UserError, match="patch-size must be 1, got 8"):
        config.setup(device="cpu")


def test_settings_that_nothing_obeys_say_so():
    for config, names in (
        (RayDataManagerConfig, ("train_num_rays_per_batch", "patch_size")),
        (MaskedPixelSamplerConfig, ("num_rays_per_batch", "rejection_sample_mask", "max_num_iterations")),
    ):
        for name in names:
            assert get_field_docstring(config, name, ()).startswith("Not used: "), name


def images_of_several_sizes(count):
    """A list of images as nerfstudio collates them; each pixel's colour is its image, row and column."""
    images = []
    for i in range(count):
        rows, columns = torch.meshgrid(torch.arange(4 + i % 3), torch.arange(5 + i % 2), indexing="ij")
        images.append(torch.stack([torch.full_like(rows, i), rows, columns], dim=-1).float())
    return {"image": images, "image_idx": torch.arange(count) + 100}


def test_every_image_is_drawn_from_where_rays_are_fewer_than_images():
    """nerfstudio gives 64 rays of 100 images to the last 32, always these."""
    torch.manual_seed(0)
    batch = images_of_several_sizes(100)
    sampler = MaskedPixelSamplerConfig().setup(num_rays_per_batch=63)
    drawn = []
    for _ in range(400):
        found = sampler.sample(batch)
        assert found["image"].shape == (63, 3)
        indices = found["indices"] - torch.tensor([100, 0, 0])
        assert torch.equal(found["image"], indices.float())
        drawn.append(indices)
    counts = torch.cat(drawn)[:, 0].bincount(minlength=100)
    pixels = torch.tensor([image.shape[0] * image.shape[1] for image in batch["image"]])
    expected = counts.sum() * pixels / pixels.sum()
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_equirectangular_images_of_several_sizes_are_drawn_evenly_over_the_sphere():
    torch.manual_seed(0)
    batch = {"image": [torch.rand(10, 20, 3), torch.rand(30, 60, 3)], "image_idx": torch.arange(2)}
    sampler = MaskedPixelSamplerConfig(is_equirectangular=True).setup(num_rays_per_batch=20_000)
    indices = sampler.sample(batch)["indices"]
    assert 1500 < (indices[:, 0] == 0).sum() < 2500
    top = (indices[:, 1] < torch.tensor([2, 6])[indices[:, 0]]).float().mean()  # a fifth of the rows, at the pole
    assert top == pytest.approx((1 - np.cos(0.2 * np.pi)) / 2, abs=0.01)


def test_masks_of_images_of_several_sizes():
    batch = images_of_several_sizes(3)
    masks = [torch.zeros(*image.shape[:2], 1, dtype=torch.bool) for image in batch["image"]]
    masks[1][2, 3] = masks[1][4, 5] = masks[2][0, 0] = True  # and none in image 0
    batch["mask"] = masks
    sampler = MaskedPixelSamplerConfig().setup(num_rays_per_batch=64)
    found = sampler.sample(batch)
    assert found["indices"].unique(dim=0).tolist() == [[101, 2, 3], [101, 4, 5], [102, 0, 0]]
    assert found["mask"].all()
    masks[1][2, 3] = False  # looked at once only
    assert [101, 2, 3] in sampler.sample(batch)["indices"].tolist()
    hidden = batch | {"mask": [torch.zeros_like(mask) for mask in masks]}
    with pytest.raises(UserError, match="masks hide every pixel"):
        sampler.sample(hidden)
    assert len(MaskedPixelSamplerConfig(ignore_mask=True).setup(num_rays_per_batch=9).sample(hidden)["image"]) == 9


def test_stacked_masks_are_kept_in_little_memory_and_looked_at_once():
    mask = torch.zeros(2, 300, 400, 1, dtype=torch.bool)
    mask[1, 100:200, 150:350] = True
    sampler = MaskedPixelSamplerConfig().setup(num_rays_per_batch=500)
    batch = {"image": torch.rand(2, 300, 400, 3), "mask": mask, "image_idx": torch.arange(2)}
    for _ in range(2):
        low, high = sampler.sample(batch)["indices"].aminmax(dim=0)
        assert (low >= torch.tensor([1, 100, 150])).all()
        assert (high < torch.tensor([2, 200, 350])).all()
        mask.zero_()  # too late
    held = [x for owner in (sampler, sampler._pixels) for x in vars(owner).values() if isinstance(x, torch.Tensor)]
    assert sum(x.nbytes for x in held if x is not mask) < 5000  # a list of the pixels: 480,000


def test_masks_limit_the_pixels():
    sampler = MaskedPixelSamplerConfig().setup(num_rays_per_batch=64)
    mask = torch.zeros(2, 5, 5, 1, dtype=torch.bool)
    mask[1, 2, 3] = True  # fewer pixels than rays
    pixels = sampler.sample_method(64, 2, 5, 5, mask=mask)
    assert pixels.unique(dim=0).tolist() == [[1, 2, 3]]
    assert sampler.sample_method(10, 2, 5, 5).shape == (10, 3)
