"""nerfstudio's datamanager of whole images, fixed to work without CUDA, without eval images and with any camera."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from ns_support.auto_data import AutoDataParserConfig
from ns_support.commands.export_rays import RaysWanted, image_rays
from ns_support.concurrency.processes import Processes
from ns_support.corrections.matching import FITTED_POSES, LOOKING, fitted_poses, photograph_matches
from ns_support.data.checks import ChecksData, own_configuration
from ns_support.data.formats.recognition import names_points
from ns_support.data.images import header
from ns_support.data.store import Batch, ImageStore
from ns_support.errors import UserError, require
from ns_support.help import documented
from ns_support.lenses.features import Matches
from ns_support.lenses.lens import Lens
from ns_support.lenses.triangulation import cameras_inside, triangulated_points
from ns_support.rays import LENS, camera_lenses, downscaled
from ns_support.runs.surface_points import surface_points
from ns_support.runs.trained_on import trained_on
from ns_support.terminal import followed, say

_FEWEST_POINTS = 100
"""With fewer triangulated points, initial positions are random."""


@documented
@dataclass
class FullImagesConfig(FullImageDatamanagerConfig):
    """Serves one whole image and its camera at a time."""

    _target: type = field(default_factory=lambda: FullImages)
    """Class to instantiate."""
    eval_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    """Not used: all eval images are there."""
    eval_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    """Not used: all eval images are there."""
    eval_image_indices: tyro.conf.Suppress[tuple[int, ...] | None] = (0,)
    """Not used: all eval images are there."""
    sfm_points: bool = True
    """Load the SfM points of scenes that have some, even if the data parser's load_3D_points is off, as it is in
    nerfstudio-data unless told otherwise. False: as the data parser says."""
    resumes: tyro.conf.Suppress[bool] = False
    """Whether a checkpoint will be loaded, so that no initial points are needed. Set by `SharedTrainer`."""
    fit_poses: tyro.conf.Suppress[bool] = False
    """Whether poses are fitted to features before training. Set by `SharedPipeline`."""
    image_memory: float = 4.0
    """Memory that training images may take (GiB), > 0, and evaluation images a quarter of it. Images for which there is
    no room are read again whenever they are used. Reduced images, as training begins with, come on top: at most a third
    more."""
    points_from: Path | None = None
    """A finished run of any method on the same data (its folder or config.yml), whose surfaces are where to start:
    points are taken from its depth, and replace those of the scene."""
    surface_points: int = 30_000
    """Maximum number of points from `points_from`, >= 1."""
    triangulated_points: int = 30_000
    """Maximum number of points, >= 0, to triangulate from the training images before training, if the scene has no SfM
    points and its cameras are inside the scene box, as in a capture; 0: none."""


class FullImages(ChecksData, FullImageDatamanager[InputDataset]):
    """`FullImageDatamanager` without its pitfalls.

    - Bad data is reported in one sentence (`ChecksData`).
    - `cache_images="cpu"`, which more than 500 images force, does not try to pin memory without CUDA.
    - All tensors of a batch are on the datamanager's device, masks included.
    - Images and cameras are not undistorted: `ns_support.rays` makes exact rays of any lens.
    - Pixels outside the data's `fisheye_crop_radius` are masked.
    - Training works with an empty eval split; evaluation on it is refused in one sentence.
    - `ns-export` gets rays from it once it has set their number (`train_pixel_sampler`).
    - A resumed run continues with the images that the original run would have used next.
    - Each rank gets its own part of a common sequence of training images (`divide`).
    """

    config: FullImagesConfig
    train_unseen_cameras: list[int]
    rays_per_step: int | None = None
    """Rays per training step, if the model sets it; None: a whole image. For the rays per second in the logs."""
    downscales = 0
    """How often the sides of the training images that are served next are halved."""
    _begun = False
    _images_per_step, _first, _every = 1, 0, 1

    def __init__(self, config: FullImagesConfig, *args: Any, **kwargs: Any) -> None:
        config = own_configuration(config)
        require(
            "--pipeline.datamanager.surface-points", config.surface_points >= 1, "at least 1", config.surface_points
        )
        require("--pipeline.datamanager.image-memory", config.image_memory > 0, "positive", config.image_memory)
        if config.sfm_points:
            _ask_for_points(config)
        super().__init__(config, *args, **kwargs)
        self._lenses: dict[int, list[Lens]] = {}  # of all training images, by factor
        self.train_pixel_sampler = RaysWanted()
        # The pipeline passes the metadata to the model, which has no other access to the cameras.
        self.train_dataset.metadata["train_cameras"] = self.train_dataset.cameras
        # A trained model does not need the file of Gaussians that it was initialised from, so it is not read again.
        self.train_dataset.metadata["checkpoint_follows"] = self.test_mode != "val" or config.resumes
        # Only for training ("val" is `ns-train`'s mode). Every rank gets the model that rank 0 makes of the points.
        if self.test_mode == "val" and not config.resumes and Processes.current().rank == 0:
            self._prepare_start()

    def _prepare_start(self) -> None:
        """Find what a training starts from: poses that fit the images' features, and points."""
        config, cameras, metadata = self.config, self.train_dataset.cameras, self.train_dataset.metadata
        looks_for_points = config.points_from is None and config.triangulated_points > 0 and self._lacks_points()
        poses = cameras.camera_to_worlds
        if config.fit_poses or looks_for_points:
            why = "The scene has no SfM points: looking for points" if looks_for_points else LOOKING
            say(f"{why} in its {len(self.train_dataset)} images.")
            matches = photograph_matches(self.train_dataset, followed)
            if config.fit_poses:
                metadata[FITTED_POSES] = fitted_poses(cameras, matches)
                poses = poses if metadata[FITTED_POSES] is None else metadata[FITTED_POSES]
            if looks_for_points:
                self._triangulate(matches, poses, config.triangulated_points)
        if config.points_from is not None:
            self._look_for_surfaces(config.points_from, config.surface_points)

    def _look_for_surfaces(self, run: Path, most: int) -> None:
        """Take the points on another run's surfaces for those of the scene."""
        found, metadata = surface_points(run, trained_on(self), most), self.train_dataparser_outputs.metadata
        # nerfstudio's pipeline passes SfM points from here to the model.
        metadata["points3D_xyz"], metadata["points3D_rgb"] = found
        say(f"{len(found.positions):,} points are on surfaces of {run}.")

    def _lacks_points(self) -> bool:
        """Whether this is a capture without SfM points."""
        centers = self.train_dataset.cameras.camera_to_worlds[:, :, 3]
        has_points = self.train_dataparser_outputs.metadata.get("points3D_xyz") is not None
        return not has_points and cameras_inside(centers, self.train_dataset.scene_box.aabb)

    def _triangulate(self, matches: Matches, poses: Tensor, most: int) -> None:
        """Triangulate points for the scene from features of its images, with their cameras at `poses` [N, 3, 4]."""
        metadata = self.train_dataparser_outputs.metadata
        found = triangulated_points(matches, poses, camera_lenses(self.train_dataset.cameras))
        if len(found.positions) < _FEWEST_POINTS:
            say(f"Only {len(found.positions)} were found, too few: the start is at random positions.")
            return
        chosen = torch.randperm(len(found.positions), generator=torch.Generator().manual_seed(0))[:most]
        # nerfstudio's pipeline passes SfM points from here to the model.
        metadata["points3D_xyz"], metadata["points3D_rgb"] = found.positions[chosen], found.colors[chosen]
        say(f"{len(chosen):,} points were triangulated.")

    def _load_images(self, split: Literal["train", "eval"], cache_images_device: Literal["cpu", "gpu"]) -> ImageStore:
        cuda = torch.device(self.device).type == "cuda"
        pinned = cuda and cache_images_device == "cpu"
        dataset = self.train_dataset if split == "train" else self.eval_dataset
        cameras, masked = dataset.cameras, dataset._dataparser_outputs.mask_filenames is not None
        radius = (cameras.metadata or {}).get("fisheye_crop_radius")

        def read(index: int) -> Batch:
            batch: Batch = dataset.get_data(index, image_type=self.config.cache_images_type)
            height, width = batch["image"].shape[:2]
            if (height, width) != (int(cameras.height[index]), int(cameras.width[index])):
                raise UserError(
                    f"The image {dataset.image_filenames[index]} is {width} x {height} pixels and its camera "
                    f"{int(cameras.width[index])} x {int(cameras.height[index])}: was it replaced just now?"
                )
            if radius is not None:
                batch["mask"] = _within_circle(batch, float(radius) * self._resized)
            return batch

        def place(batch: Batch) -> Batch:
            if not pinned:
                return self._on_device(batch)
            return {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

        channels = 3 + any(header(path).alpha for path in dataset.image_filenames) + (masked or radius is not None)
        channels *= 4 if self.config.cache_images_type == "float32" else 1
        sizes = (cameras.width * cameras.height * channels).reshape(-1).tolist()
        memory = int(self.config.image_memory * 2**30) // (1 if split == "train" else 4)
        store = ImageStore(read, sizes, memory, place)
        if split == "train":
            self.train_cameras = cameras.to("cpu" if pinned else self.device)
            if not store.fits:
                say(
                    f"The {len(store)} training images take {sum(sizes) / 2**30:.1f} GiB of memory, more than "
                    f"--pipeline.datamanager.image-memory {self.config.image_memory:g}: those "
                    "for which there is no room are read again whenever they are used."
                )
            store.load(self._factor, lambda images, total: followed(images, "Reading the training images", total))
        return store

    @property
    def _resized(self) -> float:
        """Ratio of the size of the loaded images to that of the images that the scene's metadata refer to."""
        scale: float = self.config.camera_res_scale_factor / (getattr(self.dataparser, "downscale_factor", None) or 1)
        return scale

    def divide(self, images_per_step: int, rank: int = 0, processes: int = 1) -> None:
        """Serve only one rank's part of the common sequence of images. To be called before the first image.

        Args:
            images_per_step: images of all ranks together per step, a multiple of `processes`.
            rank: of this process, which gets the images rank, rank + processes, rank + 2 processes, ...
            processes: number of ranks.
        """
        self._images_per_step, self._first, self._every = images_per_step, rank, processes

    def next_train(self, step: int) -> tuple[Cameras | RayBundle, Batch]:
        """The next training camera and its image. All images are used once before any is used again.

        nerfstudio's exporters, which set a number of rays first, get rays of the camera and no image.
        """
        wanted = self.train_pixel_sampler.num_rays_per_batch
        if wanted is not None:
            index = self.train_unseen_cameras.pop(0)
            self.train_unseen_cameras = self.train_unseen_cameras or self.sample_train_cameras()
            return image_rays(self.train_dataset.cameras, index, wanted).to(self.device), {"image_idx": index}
        if not self._begun:
            self._begun = True
            self._skip(step * self._images_per_step + self._first)
        index = self.train_unseen_cameras[0]
        self._skip(1)
        images, factor = self.cached_train, self._factor
        batch, camera = images.at(index, factor), downscaled(self.train_cameras[index : index + 1], factor)
        self._skip(self._every - 1)
        images.expect(self.train_unseen_cameras[0], factor)
        camera.metadata = {**(camera.metadata or {}), "cam_idx": index, LENS: self._lens(index, factor)}
        return camera.to(self.device), self._on_device(batch)

    def _lens(self, index: int, factor: int) -> Lens:
        """Of a training image at 1 / factor of its size; from the host's copy of the cameras."""
        if factor not in self._lenses:
            self._lenses[factor] = camera_lenses(downscaled(self.train_dataset.cameras, factor))
        return self._lenses[factor][index]

    @property
    def _factor(self) -> int:
        return 1 << self.downscales

    def _skip(self, images: int) -> None:
        for _ in range(images):
            self.train_unseen_cameras.pop(0)
            self.train_unseen_cameras = self.train_unseen_cameras or self.sample_train_cameras()

    def get_train_rays_per_batch(self) -> int:
        """The number of rays of a training step."""
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
    def eval_dataloader(self) -> EvalCameras:
        """The cameras from which `ns-render spiral` takes its first one."""
        return EvalCameras(self)

    @property
    def fixed_indices_eval_dataloader(self) -> EvalImages:
        """All eval cameras and images in order; nothing is loaded before iteration."""
        return EvalImages(self)

    def _on_device(self, batch: Batch) -> Batch:
        return {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def _no_eval_images(self) -> str:
        return f"There is no image to evaluate on in the {self.test_split} split of {self.config.dataparser.data}."


class EvalCameras:
    """The cameras of the eval split of a `FullImages`; loads no image."""

    def __init__(self, source: FullImages) -> None:
        self._source = source

    def get_camera(self, image_idx: int = 0) -> tuple[Cameras, None]:
        """A camera of shape [1], and None instead of its image.

        Raises:
            UserError: when the split is empty.
        """
        if len(self._source.eval_dataset) == 0:
            raise UserError(self._source._no_eval_images())
        return self._source.eval_dataset.cameras[image_idx : image_idx + 1], None


class EvalImages:
    """The eval split of a `FullImages`, one image on the device at a time.

    nerfstudio builds a list in a property. Its viewer reads all properties when it starts, in search of buttons, and
    would thereby load all eval images.
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
        images = source.cached_eval  # loaded first, since this may correct the cameras' sizes
        cameras = deepcopy(source.eval_dataset.cameras).to(source.device)
        for i, batch in enumerate(images):
            yield cameras[i : i + 1], source._on_device(batch)


def _ask_for_points(config: FullImagesConfig) -> None:
    """Enable the data parser's SfM points: a parser named on the command line has nerfstudio's defaults."""
    parser = config.dataparser
    if isinstance(parser, AutoDataParserConfig):
        parser = parser.nerfstudio
    if isinstance(parser, NerfstudioDataParserConfig):
        # If no file of points is named, nerfstudio may ask the user whether to create one, which would block.
        parser.load_3D_points |= names_points(config.data or config.dataparser.data)
    elif hasattr(parser, "load_3D_points"):
        parser.load_3D_points = True


def _within_circle(batch: Batch, radius: float) -> torch.Tensor:
    """The batch's mask (or the whole image) restricted to a circle about the image's centre; [H, W, 1] bool."""
    height, width = batch["image"].shape[:2]
    device = batch["image"].device
    row, column = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    inside = ((row - height // 2) ** 2 + (column - width // 2) ** 2 < radius**2)[..., None]
    return inside & batch["mask"] if "mask" in batch else inside
