"""Rays for training: nerfstudio's datamanager without its crashes over masks and missing eval images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from torch import Tensor

from ns_support.data import ChecksData
from ns_support.errors import UserError
from ns_support.rays import ExactRayGenerator


@dataclass
class MaskedPixelSamplerConfig(PixelSamplerConfig):
    """Draws pixels uniformly, within the masks where there are masks."""

    _target: type = field(default_factory=lambda: MaskedPixelSampler)
    """Class to instantiate."""


class MaskedPixelSampler(PixelSampler):
    """nerfstudio's sampler, except within masks.

    There nerfstudio draws without replacement, which fails as soon as a batch has more rays than the masks have pixels;
    its rejection sampling fails on a single image; and it looks for the masked pixels anew at each step.
    """

    _mask: Tensor | None = None
    _inside: Tensor

    def sample_method(
        self,
        batch_size: int,
        num_images: int,
        image_height: int,
        image_width: int,
        mask: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw pixels with replacement.

        Args:
            batch_size: number of pixels n.
            num_images: images in the batch.
            image_height: pixels.
            image_width: pixels.
            mask: [num_images, H, W, 1], non-zero where pixels may be drawn; None for everywhere.
            device: where the result lies.

        Returns:
            [n, 3] int64: image, row, column.

        Raises:
            UserError: if the masks hide every pixel.
        """
        if mask is None or self.config.ignore_mask:
            return super().sample_method(batch_size, num_images, image_height, image_width, None, device)
        if self._mask is not mask:
            self._mask, self._inside = mask, torch.nonzero(mask[..., 0])
        if len(self._inside) == 0:
            raise UserError("The masks hide every pixel (0 hides, 255 shows): nothing is left to train on.")
        drawn = torch.randint(len(self._inside), (batch_size,), device=self._inside.device)
        return self._inside[drawn].to(device)


@dataclass
class RayDataManagerConfig(VanillaDataManagerConfig):
    """Serves batches of random rays."""

    _target: type = field(default_factory=lambda: RayDataManager)
    """Class to instantiate."""
    pixel_sampler: PixelSamplerConfig = field(default_factory=MaskedPixelSamplerConfig)
    """Draws the pixels of a batch."""


class RayDataManager(ChecksData, VanillaDataManager[InputDataset]):
    """`VanillaDataManager` that says in one sentence what is wrong with the data, and trains without eval images."""

    config: RayDataManagerConfig

    def __init__(
        self,
        config: RayDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)
        if len(self.eval_dataset) == 0:
            self.fixed_indices_eval_dataloader = _NoEvalImages(self)

    def setup_train(self) -> None:
        """Load the training images; rays come from them as they are, distorted or not."""
        super().setup_train()
        self.train_ray_generator = ExactRayGenerator(self.train_dataset.cameras.to(self.device))

    def setup_eval(self) -> None:
        """The same for evaluation."""
        super().setup_eval()
        self.eval_ray_generator = ExactRayGenerator(self.eval_dataset.cameras.to(self.device))

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """A random eval camera and its image.

        Raises:
            UserError: if the eval split is empty.
        """
        if len(self.eval_dataset) == 0:
            raise UserError(no_eval_images(self))
        return super().next_eval_image(step)


class _NoEvalImages:
    def __init__(self, source: RayDataManager) -> None:
        self._source = source

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[tuple[Cameras, dict[str, Any]]]:
        raise UserError(no_eval_images(self._source))


def no_eval_images(source: RayDataManager) -> str:
    """The sentence for an eval split without images."""
    return f"There is no image to evaluate on in the {source.test_split} split of {source.config.dataparser.data}."
