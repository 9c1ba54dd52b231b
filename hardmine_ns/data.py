"""Rays for training: nerfstudio's datamanager without its crashes over masks and missing eval images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from torch import Tensor

from hardmine_ns.mining import BlockMemory
from hardmine_ns.pixels import PixelBank, VisiblePixels, collated_images
from ns_support.concurrency.processes import Processes
from ns_support.corrections.matching import FITTED_POSES, LOOKING, fitted_poses, photograph_matches
from ns_support.data.checks import ChecksData
from ns_support.errors import UserError
from ns_support.help import documented
from ns_support.rays import ExactRayGenerator
from ns_support.terminal import followed, say

_MOST_ON_GPU = 1 << 31
"""Numbers, of a byte each or four, that the training images may have altogether to be kept on a GPU: 1,000 photographs
of 800 x 800 pixels."""
_ALL_HIDDEN = "The masks hide every pixel (0 hides, 255 shows): nothing is left to train on."


@documented
@dataclass
class MaskedPixelSamplerConfig(PixelSamplerConfig):
    """Draws pixels uniformly, within the masks where there are masks."""

    _target: type = field(default_factory=lambda: MaskedPixelSampler)
    """Class to instantiate."""
    num_rays_per_batch: tyro.conf.Suppress[int] = 4096
    """Not used: `target-num-samples` of the pipeline sets it."""
    is_equirectangular: tyro.conf.Suppress[bool] = False
    """Not used: the cameras say so."""
    fisheye_crop_radius: tyro.conf.Suppress[float | None] = None
    """Not used: the data parser says so."""
    rejection_sample_mask: tyro.conf.Suppress[bool] = True
    """Not used: only pixels that the masks show are drawn."""
    max_num_iterations: tyro.conf.Suppress[int] = 100
    """Not used: nothing is drawn twice."""


class MaskedPixelSampler(PixelSampler):
    """nerfstudio's sampler, except within masks and in images of several sizes.

    Within masks nerfstudio draws without replacement, which fails as soon as a batch has more rays than the masks have
    pixels; its rejection sampling fails on a single image; and it looks for the masked pixels anew at each step. Of
    images of several sizes it draws an even number of rays each: where there are fewer rays than two an image, the
    first images never get one.
    """

    draw: Callable[[int], Tensor] | None = None
    """Draws n pixels [n, 3] int64 (place in the batch, row, column) if not all are as likely; None: all are."""
    _pixels: VisiblePixels
    _source: object = None

    @property
    def unequal(self) -> bool:
        """Whether the cameras want some pixels drawn less often than others."""
        return self.config.is_equirectangular or self.config.fisheye_crop_radius is not None

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
        if self.draw is not None:
            return self.draw(batch_size).to(device)
        if mask is None or self.config.ignore_mask:
            return super().sample_method(batch_size, num_images, image_height, image_width, None, device)
        return self._visible(mask, [(image_height, image_width)] * num_images, mask).draw(batch_size).to(device)

    def collate_image_dataset_batch_list(
        self, batch: dict[str, Any], num_rays_per_batch: int, keep_full_image: bool = False
    ) -> dict[str, Any]:
        """Draw pixels of images of several sizes: an image in proportion to its visible pixels, then one of these.

        Args:
            batch: "image", a list of [H, W, C]; perhaps "mask" and others, lists of [H, W, *]; "image_idx" [images].
            num_rays_per_batch: number of pixels n.
            keep_full_image: whether the images go into the result.

        Returns:
            Of each list the drawn pixels' values [n, *]; "indices" [n, 3]: the image's index, row, column; perhaps
            "full_image". Pixels of an image follow one another.

        Raises:
            UserError: if the masks hide every pixel.
        """
        images: list[Tensor] = batch["image"]
        indices = self._pixels_in_list(images, batch.get("mask"), num_rays_per_batch)
        # Sorted, so that each image is looked into once.
        indices = indices[indices[:, 0].argsort()].to(images[0].device)
        parts = indices.split(indices[:, 0].bincount(minlength=len(images)).tolist())
        hit = [(i, part[:, 1], part[:, 2]) for i, part in enumerate(parts) if len(part)]
        lists = {k: x for k, x in batch.items() if isinstance(x, list) and all(isinstance(y, Tensor) for y in x)}
        collated = {k: torch.cat([x[i][rows, columns] for i, rows, columns in hit]) for k, x in lists.items()}
        indices[:, 0] = batch["image_idx"].to(indices.device)[indices[:, 0]]
        return collated | {"indices": indices} | ({"full_image": images} if keep_full_image else {})

    def _pixels_in_list(self, images: list[Tensor], masks: list[Tensor] | None, number: int) -> Tensor:
        """[n, 3] int64: place in the list, row, column."""
        if self.draw is not None:
            return self.draw(number)
        if self.config.ignore_mask:
            masks = None
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        pixels = self._visible(images if masks is None else masks, sizes, masks).draw(number)
        if masks is None and self.config.is_equirectangular:  # rows near the poles less often: they show less of space
            for i in pixels[:, 0].unique().tolist():
                own = pixels[:, 0] == i
                pixels[own, 1:] = self.sample_method_equirectangular(int(own.sum()), 1, *sizes[i])[:, 1:]
        return pixels

    def _visible(
        self, source: object, sizes: list[tuple[int, int]], masks: Sequence[Tensor] | Tensor | None
    ) -> VisiblePixels:
        """The pixels to draw from; found anew only when they come from another source than the time before."""
        if self._source is not source:
            self._pixels, self._source = VisiblePixels(sizes, masks), source
        if self._pixels.count == 0:
            raise UserError(_ALL_HIDDEN)
        return self._pixels


@documented
@dataclass
class RayDataManagerConfig(VanillaDataManagerConfig):
    """Serves batches of random rays."""

    _target: type = field(default_factory=lambda: RayDataManager)
    """Class to instantiate."""
    train_num_rays_per_batch: tyro.conf.Suppress[int] = 1024
    """Not used: the pipeline chooses the rays of each batch by its `target-num-samples`."""
    patch_size: tyro.conf.Suppress[int] = 1
    """Not used: single pixels are drawn; anything but 1 is refused."""
    pixel_sampler: PixelSamplerConfig = field(default_factory=MaskedPixelSamplerConfig)
    """Draws the pixels of a batch."""
    resumes: tyro.conf.Suppress[bool] = False
    """Whether a checkpoint will be loaded. Set by `SharedTrainer`."""
    fit_poses: tyro.conf.Suppress[bool] = False
    """Whether poses are fitted to features before training. Set by `SharedPipeline`."""


class RayDataManager(ChecksData, VanillaDataManager[InputDataset]):
    """`VanillaDataManager` that says in one sentence what is wrong with the data, and trains without eval images.

    Its rays are drawn where they are needed, if `mine_rays` was called.
    """

    config: RayDataManagerConfig
    memory: BlockMemory | None
    """Where the images are still wrong; saved in checkpoints."""
    bank: PixelBank | None
    """The images on a GPU, if they are there."""

    def __init__(
        self,
        config: RayDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        if config.patch_size != 1:
            raise UserError(f"patch-size must be 1, got {config.patch_size}: single pixels are drawn, not patches.")
        super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)
        self.memory, self.bank = None, None
        # The pipeline passes the metadata to the model, which has no other access to the cameras.
        self.train_dataset.metadata["train_cameras"] = self.train_dataset.cameras
        if config.fit_poses and test_mode == "val" and not config.resumes and Processes.current().rank == 0:
            say(f"{LOOKING} in its {len(self.train_dataset)} images.")
            matches = photograph_matches(self.train_dataset, followed)
            self.train_dataset.metadata[FITTED_POSES] = fitted_poses(self.train_dataset.cameras, matches)
        if len(self.eval_dataset) == 0:
            self.fixed_indices_eval_dataloader = _NoEvalImages(self)

    def setup_train(self) -> None:
        """Load the training images; rays come from them as they are, distorted or not."""
        super().setup_train()
        self.train_ray_generator = ExactRayGenerator(self.train_dataset.cameras.to(self.device))

    def mine_rays(self, uniform_share: float, weight_power: float, processes: Processes) -> None:
        """Draw training rays where images are wrong from now on, if all images are in memory and flat.

        Args:
            uniform_share: as for `BlockMemory`.
            weight_power: likewise.
            processes: that train together.

        Raises:
            UserError: if the masks hide every pixel.
        """
        sampler, batch = self.train_pixel_sampler, self.train_image_dataloader.cached_collated_batch
        if not isinstance(sampler, MaskedPixelSampler) or sampler.unequal or batch is None:
            return
        # The loader shuffles the images, anew at each start; the memory and its checkpoints have them in order.
        places = batch["image_idx"].cpu().argsort()
        sizes = [tuple(batch["image"][place].shape[:2]) for place in places.tolist()]
        masks = None
        if "mask" in batch and not sampler.config.ignore_mask:
            masks = [batch["mask"][place] for place in places.tolist()]
        powers = {"uniform_share": uniform_share, "weight_power": weight_power}
        try:
            memory = BlockMemory(sizes, masks, **powers, processes=processes)
        except ValueError as error:
            raise UserError(_ALL_HIDDEN) from error

        def draw(number: int) -> Tensor:
            pixels = memory.draw(number)
            return torch.cat([places[pixels[:, :1]], pixels[:, 1:]], 1)

        self.memory, sampler.draw = memory, draw

    def keep_on_gpu(self) -> None:
        """Draw pixels where the model is from now on, from copies of the images there, if it is on a GPU.

        Not if there are too many images, if pixels are not all as likely (panoramas, `mine_rays`), or if the images are
        changed for others on the way.

        Raises:
            UserError: if the masks hide every pixel.
        """
        sampler, batch = self.train_pixel_sampler, self.train_image_dataloader.cached_collated_batch
        fits = isinstance(sampler, MaskedPixelSampler) and not sampler.unequal and sampler.draw is None
        if torch.device(self.device).type != "cuda" or not fits or batch is None:
            return
        if not self.train_image_dataloader.cache_all_images:
            return
        images, masks = collated_images(batch, sampler.config.ignore_mask)
        if sum(image.numel() for image in images) > _MOST_ON_GPU:
            return
        self.bank = PixelBank(images, masks, self.device)
        if self.bank.count == 0:
            raise UserError(_ALL_HIDDEN)

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """The next batch of rays; with "ray_weights" [n], factors on their losses, if not all were as likely."""
        if self.bank is not None:
            self.train_count += 1
            batch = self.bank.draw(self.train_pixel_sampler.num_rays_per_batch)
            return self.train_ray_generator(batch["indices"]), batch
        rays, batch = super().next_train(step)
        if self.memory is not None:
            batch["ray_weights"] = self.memory.weights(batch["indices"])
        return rays, batch

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
