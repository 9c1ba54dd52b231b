"""nerfstudio's datamanager of whole images, made to work without CUDA, without eval images and with any camera."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset

from ns_support.data import ChecksData, explained_data_errors, parser_name
from ns_support.errors import UserError
from ns_support.export_rays import RaysWanted, image_rays

Batch = dict[str, Any]
"""An image's data: "image" [H, W, 3 or 4] float in [0, 1] (or uint8), "image_idx", "mask" [H, W, 1] bool if any."""


@dataclass
class FullImagesConfig(FullImageDatamanagerConfig):
    """Serves one whole image and its camera at a time."""

    _target: type = field(default_factory=lambda: FullImages)
    """Class to instantiate."""
    sfm_points: bool = True
    """Load the SfM points of scenes that have some, even if the data parser's load_3D_points is off, as it is in
    nerfstudio-data unless told otherwise. False: as the data parser says."""


class FullImages(ChecksData, FullImageDatamanager[InputDataset]):
    """`FullImageDatamanager` with its traps removed.

    - Bad data ends in one sentence (`ChecksData`).
    - `cache_images="cpu"`, which more than 500 images force, does not try to pin memory without CUDA.
    - Every tensor of a batch is on the datamanager's device, masks too.
    - Images are undistorted when they are cached, and the cameras say so afterwards: their distortion is zero and their
      type perspective. Rays made from them fit the pixels.
    - An empty eval split is no obstacle to training; evaluating on it ends in a sentence.
    - `ns-export` gets rays from it, as soon as it has said how many (`train_pixel_sampler`).
    - A resumed run goes on with the images that the run it resumes would have come to next.
    """

    config: FullImagesConfig
    train_unseen_cameras: list[int]
    rays_per_step: int | None = None
    """Rays that a training step casts, if its model tells; None: a whole image. For the rays per second in the logs."""
    _begun = False

    def __init__(self, config: FullImagesConfig, *args: Any, **kwargs: Any) -> None:
        # A parser named on the command line comes with nerfstudio's defaults, not with the method's.
        if config.sfm_points and hasattr(config.dataparser, "load_3D_points"):
            config.dataparser.load_3D_points = True
        super().__init__(config, *args, **kwargs)
        self.train_pixel_sampler = RaysWanted()

    def _load_images(self, split: Literal["train", "eval"], cache_images_device: Literal["cpu", "gpu"]) -> list[Batch]:
        # "cpu" pins memory for copies to a GPU. Without one, "gpu" means the device that all is on anyway.
        where = cache_images_device if torch.device(self.device).type == "cuda" else "gpu"
        with explained_data_errors(self.config.dataparser.data, parser_name(self.config.dataparser)):
            images: list[Batch] = super()._load_images(split, where)
        dataset = self.train_dataset if split == "train" else self.eval_dataset
        _forget_distortion(dataset.cameras)
        if split == "train":
            self.train_cameras = dataset.cameras.to(self.device if where == "gpu" else "cpu")
        return images

    def next_train(self, step: int) -> tuple[Cameras | RayBundle, Batch]:
        """The next training camera and its image, each seen once before any is seen again.

        For nerfstudio's exporters, which ask for a number of rays first: rays of the camera's, and no image.
        """
        wanted = self.train_pixel_sampler.num_rays_per_batch
        if wanted is not None:
            index = self.train_unseen_cameras.pop(0)
            self.train_unseen_cameras = self.train_unseen_cameras or self.sample_train_cameras()
            return image_rays(self.train_dataset.cameras, index, wanted).to(self.device), {"image_idx": index}
        if not self._begun:
            self._begun = True
            for _ in range(step):
                self.train_unseen_cameras.pop(0)
                self.train_unseen_cameras = self.train_unseen_cameras or self.sample_train_cameras()
        camera, batch = super().next_train(step)
        return camera, self._on_device(batch)

    def get_train_rays_per_batch(self) -> int:
        """Rays of a training step."""
        return self.rays_per_step or super().get_train_rays_per_batch()

    def next_eval_image(self, step: int) -> tuple[Cameras, Batch]:
        """A random eval camera and its image.

        Raises:
            UserError: when the eval split is empty.
        """
        if not self.eval_unseen_cameras:
            raise UserError(self._no_eval_images())
        camera, batch = super().next_eval_image(step)
        return camera, self._on_device(batch)

    @property
    def fixed_indices_eval_dataloader(self) -> EvalImages:
        """All eval cameras and images in order; loads nothing until it is iterated."""
        return EvalImages(self)

    def _on_device(self, batch: Batch) -> Batch:
        return {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def _no_eval_images(self) -> str:
        return f"There is no image to evaluate on in the {self.test_split} split of {self.config.dataparser.data}."


class EvalImages:
    """The eval split of a `FullImages`, one image on the device at a time.

    nerfstudio builds a list in a property. Its viewer reads every property when it starts, and would load all eval
    images only to look for buttons.
    """

    def __init__(self, source: FullImages) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source.eval_dataset)

    def __iter__(self) -> Iterator[tuple[Cameras, Batch]]:
        """Yields (camera of shape [1], batch).

        Raises:
            UserError: when the split is empty.
        """
        source = self._source
        if len(self) == 0:
            raise UserError(source._no_eval_images())
        # The images first: caching them is what corrects the cameras.
        images = source.cached_eval
        cameras = deepcopy(source.eval_dataset.cameras).to(source.device)
        for i, batch in enumerate(images):
            yield cameras[i : i + 1], source._on_device(batch)


def _forget_distortion(cameras: Cameras) -> None:
    if cameras.distortion_params is None:
        return
    undistorted = (cameras.distortion_params != 0).any(dim=-1, keepdim=True)
    perspective = torch.full_like(cameras.camera_type, CameraType.PERSPECTIVE.value)
    cameras.camera_type = torch.where(undistorted, perspective, cameras.camera_type)
    cameras.distortion_params = torch.zeros_like(cameras.distortion_params)
