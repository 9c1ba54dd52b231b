"""Rays for training come from the images as they are."""

import json

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from hardmine_ns.data import RayDataManagerConfig


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
