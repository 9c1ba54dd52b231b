"""A data set whose images and masks are read and checked by this package, and the check of a parser's outputs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from numpy.typing import NDArray

from ns_support.data.images import Header, header, missing, read_image
from ns_support.data.masks import read_mask
from ns_support.data.poses import checked_poses, refuse_coarse
from ns_support.data.warnings import warn_once
from ns_support.errors import UserError

_ROUNDINGS = ((-0.5, 0.5), (0.0, 1.0), (-1.0, 0.0))
"""Range of a resized image's exact size minus its size in whole pixels, for rounding to nearest, down and up."""
_SMALL_FRACTION = 0.005
"""Fraction of an image's side below which a difference of a pixel is not reported."""
_WITH_FOCAL = torch.tensor([k.value for k in (CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.FISHEYE624)])
_EXTREME_FOCAL = 1e4
"""Focal length in units of the image's size, or its inverse, from which a camera is senseless: 20 arc seconds wide."""
_EXTREME_CENTER = 1e3
"""The same for the distance of the centre from the image."""
_TURNED = {5, 6, 7, 8}
"""EXIF orientations that swap width and height."""


class CheckedDataset(InputDataset):
    """`InputDataset` that converts all pixel formats, and names a file that it can't convert.

    If only some of the images have an alpha channel, the others get an opaque one, so that all batches are alike.
    """

    def __init__(self, dataparser_outputs: DataparserOutputs, scale_factor: float = 1.0) -> None:
        super().__init__(dataparser_outputs, scale_factor)
        self._opaque = bool(dataparser_outputs.metadata.get("some_have_alpha", False))
        self._read: set[int] = set()
        self._hidden: set[int] = set()
        self._lock = Lock()

    def get_numpy_image(self, image_idx: int) -> NDArray[np.uint8]:
        """An image as [H, W, 3] or [H, W, 4].

        Raises:
            UserError: it can't be read.
        """
        image = read_image(self.image_filenames[image_idx], self.scale_factor)
        if self._opaque and image.shape[2] == 3 and self._dataparser_outputs.alpha_color is None:
            image = np.concatenate([image, np.full_like(image[..., :1], 255)], axis=-1)
        return image

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """An image, its index, and its mask if there is one.

        Raises:
            UserError: the image or the mask can't be read, they differ in size, or all masks hide everything.
        """
        image = self.get_image_float32(image_idx) if image_type == "float32" else self.get_image_uint8(image_idx)
        data: dict[str, Any] = {"image_idx": image_idx, "image": image}
        if self._dataparser_outputs.mask_filenames is not None:
            data["mask"] = self._mask(image_idx, (image.shape[0], image.shape[1]))
        if self.mask_color:
            data["image"] = torch.where(
                data["mask"] == 1.0, data["image"], torch.ones_like(data["image"]) * torch.tensor(self.mask_color)
            )
        return data | self.get_metadata(data)

    def _mask(self, image_idx: int, size: tuple[int, int]) -> torch.Tensor:
        masks: list[Path | None] = self._dataparser_outputs.mask_filenames
        path = masks[image_idx]
        mask = torch.ones(*size, 1, dtype=torch.bool) if path is None else read_mask(path, self.scale_factor)
        if mask.shape[:2] != size:
            raise UserError(
                f"The mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels and its image "
                f"{self.image_filenames[image_idx]} {size[1]} x {size[0]}: make them equal."
            )
        self._note(image_idx, bool(mask.any()))
        return mask

    def _note(self, image_idx: int, shows: bool) -> None:
        with self._lock:
            complete = len(self._read) == len(self)
            self._read.add(image_idx)
            if not shows:
                self._hidden.add(image_idx)
            if complete or len(self._read) < len(self) or not self._hidden:
                return
        first = self._dataparser_outputs.mask_filenames[min(self._hidden)]
        if len(self._hidden) == len(self):
            raise UserError(f"The masks hide every pixel of all images (0 hides, 255 shows), the first is {first}.")
        warn_once(f"{len(self._hidden)} of {len(self)} masks hide the whole image, the first is {first}.")


def checked_outputs(outputs: DataparserOutputs, data: Path, needed: bool) -> DataparserOutputs:
    """A parser's outputs, after a check of the poses and of every image's header.

    Args:
        outputs: of any parser; not changed.
        data: the folder or file that they are from, for messages.
        needed: whether the images must exist.

    Returns:
        The same outputs, with cameras of the same size as their images, and the metadata "some_have_alpha".

    Raises:
        UserError: poses or lenses are unusable, or images are missing or do not fit the cameras' sizes.
    """
    cameras, files = deepcopy(outputs.cameras), outputs.image_filenames
    if cameras.metadata is None:  # without any, `ns-export cameras` has nowhere to put the number of a refined camera
        cameras.metadata = {}
    poses = cameras.camera_to_worlds.double().numpy()
    if poses.shape != (len(files), 3, 4):
        raise UserError(f"The poses of {data} have the shape {tuple(poses.shape)}, not ({len(files)}, 3, 4).")
    mended = checked_poses(poses, files, data)
    if mended is not poses:
        cameras.camera_to_worlds = torch.from_numpy(mended).to(cameras.camera_to_worlds)
    refuse_coarse(poses[:, :, 3], data)
    absent = missing(files)
    if needed and absent:
        raise UserError(
            f"{len(absent)} of the {len(files)} images that {data} lists are not there, the first is {absent[0]}: "
            "put them back, or take them out of the list."
        )
    refuse_senseless_lenses(cameras, files, data)
    headers = {i: header(path) for i, path in enumerate(files) if path not in set(absent)} if needed else {}
    fit_sizes(cameras, files, headers)
    alpha = [head.alpha for head in headers.values()]
    metadata = {**outputs.metadata, "some_have_alpha": any(alpha) and not all(alpha)}
    return replace(outputs, cameras=cameras, metadata=metadata)


def refuse_senseless_lenses(cameras: Cameras, files: list[Path], data: Path) -> None:
    """Refuse lenses with which no ray has a direction that a float can hold.

    Raises:
        UserError: a focal length or a centre is not finite, or out of all proportion to the image's size.
    """
    size = torch.stack([cameras.width, cameras.height, cameras.width, cameras.height], -1).double().reshape(-1, 4)
    values = torch.stack([cameras.fx, cameras.fy, cameras.cx, cameras.cy], -1).double().reshape(-1, 4)
    ratios = values / size.clamp_min(1)
    least, most = (
        ratios.new_tensor([*[1 / _EXTREME_FOCAL] * 2, *[-_EXTREME_CENTER] * 2]),
        ratios.new_tensor([*[_EXTREME_FOCAL] * 2, *[_EXTREME_CENTER] * 2]),
    )
    wrong = ~((ratios >= least) & (ratios <= most)) & torch.isin(cameras.camera_type, _WITH_FOCAL).reshape(-1, 1)
    if bool(wrong.any()):
        i, entry = (int(index) for index in wrong.nonzero()[0])
        raise UserError(
            f"The camera of {files[i]} in {data} has {('fx', 'fy', 'cx', 'cy')[entry]} = {float(values[i, entry]):g} "
            f"pixels for an image of {int(size[i, 0])} x {int(size[i, 1])}, which is no camera: correct it."
        )


def fit_sizes(cameras: Cameras, files: list[Path], headers: dict[int, Header]) -> None:
    """Set the cameras' sizes to those of their images, in place.

    A difference of one pixel is accepted: some programs round the sizes of downscaled images up, others down. If an
    image was resized with its aspect ratio kept, its camera's intrinsics are scaled accordingly.

    Raises:
        UserError: an image has a different aspect ratio than its camera.
    """
    if not headers:
        return
    # All cameras may share a single number in memory.
    for name in ("width", "height", "fx", "fy", "cx", "cy"):
        setattr(cameras, name, getattr(cameras, name).clone())
    scaled: list[tuple[int, tuple[int, int]]] = []
    turned: list[int] = []
    for i, head in headers.items():
        width, height = int(cameras.width[i]), int(cameras.height[i])
        if head.orientation != 1:
            turned.append(i)
        if abs(head.width - width) > 1 or abs(head.height - height) > 1:
            _refuse_other_aspect(files[i], head, width, height)
            across, down = head.width / width, head.height / height
            cameras.fx[i], cameras.cx[i] = cameras.fx[i] * across, cameras.cx[i] * across
            cameras.fy[i], cameras.cy[i] = cameras.fy[i] * down, cameras.cy[i] * down
            scaled.append((i, (width, height)))
        elif (head.width, head.height) != (width, height) and min(width, height) * _SMALL_FRACTION < 1:
            warn_once(
                f"Images such as {files[i]} are {head.width} x {head.height} pixels, their cameras {width} x {height}: "
                "taken for rounding. If they were resized, correct the cameras.",
                about=("pixel", files[i].parent),
            )
        cameras.width[i], cameras.height[i] = head.width, head.height
    if scaled:
        i, (width, height) = scaled[0]
        warn_once(
            f"{len(scaled)} images are not of the size that their cameras are for, such as {files[i]}, which is "
            f"{headers[i].width} x {headers[i].height} and not {width} x {height}: focal lengths and centres are "
            "scaled to the images.",
            about=("scaled", files[i].parent),
        )
    if turned:
        warn_once(
            f"{len(turned)} images have an EXIF tag that says to turn them, such as {files[turned[0]]} (orientation "
            f"{headers[turned[0]].orientation}). It is ignored, as by COLMAP: if the poses are of upright images, turn "
            "the pixels (`mogrify -auto-orient`).",
            about=("turned", files[turned[0]].parent),
        )


def _refuse_other_aspect(path: Path, head: Header, width: int, height: int) -> None:
    for low, high in _ROUNDINGS:
        least = max((head.width + low) / width, (head.height + low) / height)
        if least <= min((head.width + high) / width, (head.height + high) / height):
            return
    text = f"The image {path} is {head.width} x {head.height} pixels and its camera {width} x {height}"
    if abs(head.width - height) <= 1 and abs(head.height - width) <= 1:
        if head.orientation in _TURNED:
            raise UserError(
                f"{text}: its EXIF tag says to turn it (orientation {head.orientation}), and the camera is that of the "
                "turned image. Turn the pixels of all images, for example with `mogrify -auto-orient`."
            )
        raise UserError(f"{text}: width and height are swapped. Correct the camera, or turn the images.")
    raise UserError(f"{text}: neither the same size nor the same shape. Give the images that the camera is for.")
