"""nerfstudio's parser for COLMAP, for all lenses that nerfstudio can represent, with or without points."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser
from nerfstudio.data.utils import colmap_parsing_utils as colmap_utils
from numpy.typing import NDArray
from torch import Tensor

from ns_support.data.formats.colmap_cameras import read_colmap_cameras, refuse_longer
from ns_support.data.formats.lens_entries import LensEntries
from ns_support.data.images import header, missing
from ns_support.data.outputs import ExactOutputs, moved
from ns_support.data.points import SfmPoints, in_scene
from ns_support.data.poses import checked_poses, common_offset
from ns_support.data.warnings import warn_once
from ns_support.errors import UserError

OWN_AXES = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
"""From COLMAP's world, whose y points down, to nerfstudio's, whose z points up."""
MOST_PIXELS = 1600
"""Longer side up to which images are trained on as they are; nerfstudio's parsers reduce larger ones."""


class CheckedColmap(ColmapDataParser):
    """`ColmapDataParser` that reads fisheye lenses and models without points, and finds the folder of the images.

    If a model has both binary and text files, the binary ones are read, as in COLMAP.
    """

    _lenses: dict[Path, LensEntries]
    _offset: NDArray[np.float64]
    _downscale_factor: int | None

    def _get_all_images_and_cameras(self, recon_dir: Path) -> dict[str, Any]:
        cameras = read_colmap_cameras(recon_dir)
        images = registered_images(recon_dir)
        if not images:
            raise UserError(f"The COLMAP model in {recon_dir} has no registered image.")
        self._find_images([image.name for image in images])
        axes = OWN_AXES if self.config.assume_colmap_world_coordinate_convention else np.eye(4)
        poses = np.stack([axes @ camera_pose(image, recon_dir) for image in images])
        poses = checked_poses(poses, [image.name for image in images], recon_dir)
        self._offset = common_offset(poses[:, :3, 3], recon_dir)
        poses[:, :3, 3] -= self._offset
        self._lenses = {}
        frames = []
        for image, pose in zip(images, poses, strict=True):
            if image.camera_id not in cameras:
                raise UserError(f"The model in {recon_dir} lacks camera {image.camera_id}, that of {image.name}.")
            lens = cameras[image.camera_id]
            file = self.config.data / self.config.images_path / image.name
            self._lenses[file] = lens
            frame = {
                "file_path": file.as_posix(),
                "transform_matrix": pose,
                "colmap_im_id": image.id,
                **{"fl_x": lens.fx, "fl_y": lens.fy, "cx": lens.cx, "cy": lens.cy, "w": lens.width, "h": lens.height},
            }
            frames.append(frame | self._beside(image.name))
        # Camera type and distortion are set afterwards: nerfstudio takes a single model for all images, without k4.
        found: dict[str, Any] = {"frames": frames, "camera_model": "OPENCV"}
        if self.config.assume_colmap_world_coordinate_convention:
            found["applied_transform"] = axes[:3].tolist()
        return found

    def _beside(self, name: str) -> dict[str, str]:
        """A frame's mask and depth map, if they are configured."""
        config, found = self.config, {}
        if config.masks_path is not None:
            folder = config.data / config.masks_path
            of_colmap = folder / f"{name}.png"
            found["mask_path"] = (of_colmap if of_colmap.is_file() else (folder / name).with_suffix(".png")).as_posix()
        elif (config.data / "masks").is_dir():
            warn_once(f"The masks in {config.data / 'masks'} are not used; `colmap --masks-path masks` uses them.")
        if config.depths_path is not None:
            found["depth_path"] = (config.data / config.depths_path / name).with_suffix(".png").as_posix()
        return found

    def _find_images(self, names: list[str]) -> None:
        """Use the first folder that contains all images, if the configured one contains none."""
        data, configured = self.config.data, self.config.data / self.config.images_path
        if any((configured / name).is_file() for name in names):
            return
        folders = [data, *(p for pattern in ("*", "*/*", "*/*/*") for p in sorted(data.glob(pattern)) if p.is_dir())]
        fitting = [folder for folder in folders if not missing([folder / name for name in names])]
        if fitting:
            warn_once(f"The images are read from {fitting[0]}, as there are none in {configured}.")
            self.config.images_path = fitting[0].relative_to(data)

    def _setup_downscale_factor(
        self, image_filenames: list[Path], mask_filenames: list[Path], depth_filenames: list[Path]
    ) -> tuple[list[Path], list[Path], list[Path], int]:
        """As in nerfstudio, but without a question to the user: images that are not downscaled are used as they are."""
        if self._downscale_factor is None and self.config.downscale_factor is None:
            configured = self.config.data / self.config.images_path
            width, height = header(image_filenames[0])[:2] if image_filenames[0].is_file() else (1, 1)
            factor = 1
            while max(width, height) / factor > MOST_PIXELS:
                if not configured.with_name(f"{configured.name}_{2 * factor}").is_dir():
                    break
                factor *= 2
            self._downscale_factor = factor
            if max(width, height) / factor > MOST_PIXELS:
                warn_once(
                    f"The images in {configured} are {width} x {height} pixels, and trained on as they are. Smaller "
                    f"ones train faster: put images of half the size into {configured.name}_2 beside them."
                )
        elif (factor := self._downscale_factor or self.config.downscale_factor or 1) > 1:
            smaller = self.config.data / self.config.images_path
            smaller = smaller.with_name(f"{smaller.name}_{factor}")
            if not smaller.is_dir():
                raise UserError(
                    f"There is no folder {smaller} of images downscaled by {factor}: make it, or leave "
                    "--downscale-factor out."
                )
        return super()._setup_downscale_factor(image_filenames, mask_filenames, depth_filenames)

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        folder = self.config.data / self.config.colmap_path
        if not folder.is_dir():
            raise UserError(f"There is no COLMAP model in {folder}: name its folder with `colmap --colmap-path`.")
        outputs = super()._generate_dataparser_outputs(split, **kwargs)
        lenses = [self._lenses[self._original(file)] for file in outputs.image_filenames]
        outputs.cameras.distortion_params = _coefficients(lenses, folder)
        outputs.cameras.camera_type = torch.tensor([lens.kind.value for lens in lenses]).view(-1, 1)
        raw = self._raw_offset()
        return ExactOutputs(**{**vars(outputs), "dataparser_transform": moved(outputs.dataparser_transform, raw)})

    def _original(self, file: Path) -> Path:
        """The original of a downscaled image."""
        images = self.config.data / self.config.images_path
        if self._downscale_factor == 1:
            return file
        return images / file.relative_to(images.with_name(f"{images.name}_{self._downscale_factor}"))

    def _raw_offset(self) -> NDArray[np.float64]:
        """The offset in COLMAP's own world coordinates."""
        turned = self.config.assume_colmap_world_coordinate_convention
        return OWN_AXES[:3, :3].T @ self._offset if turned else self._offset

    def _load_3D_points(  # noqa: N802
        self, colmap_path: Path, transform_matrix: Tensor, scale_factor: float
    ) -> dict[str, Tensor]:
        if self.config.max_2D_matches_per_3D_point != 0 and not self._offset.any():
            if model_points(colmap_path) is None:  # which also refuses a damaged file
                return {}
            return super()._load_3D_points(colmap_path, transform_matrix, scale_factor)
        points = model_points(colmap_path)
        if points is None:
            return {}
        positions = np.array([point.xyz for point in points], dtype=np.float64).reshape(-1, 3)
        finite = np.isfinite(positions).all(-1)
        if not finite.all():
            warn_once(f"{int((~finite).sum())} of the {len(finite)} points in {colmap_path} are not finite: left out.")
        kept = [point for point, good in zip(points, finite, strict=True) if good]
        if not kept:
            warn_once(f"There is no point in the COLMAP model in {colmap_path}: going on without.")
            return {}
        colors = np.array([point.rgb for point in kept], dtype=np.uint8)
        moved_points = SfmPoints(positions[finite], colors)
        return {
            **in_scene(moved_points, moved(transform_matrix, self._raw_offset()), scale_factor),
            "points3D_error": torch.tensor([float(point.error) for point in kept], dtype=torch.float32),
            "points3D_num_points2D": torch.tensor([len(point.image_ids) for point in kept], dtype=torch.int64),
        }


def registered_images(folder: Path) -> list[Any]:
    """The registered images, sorted by their numbers."""
    found = _read(folder, "images", colmap_utils.read_images_binary, colmap_utils.read_images_text)
    if found is None:
        raise UserError(f"There is no images.bin or images.txt in {folder}, beside the cameras.")
    return [found[key] for key in sorted(found)]


def model_points(folder: Path) -> list[Any] | None:
    """The SfM points of a model; None, with a warning, if it has no file of them."""
    found = _read(folder, "points3D", colmap_utils.read_points3D_binary, colmap_utils.read_points3D_text)
    if found is None:
        warn_once(f"There are no SfM points (points3D.bin or .txt) in {folder}: going on without.")
        return None
    return list(found.values())


def _read(folder: Path, name: str, binary: Any, text: Any) -> Any:
    """A table of a model: binary if the cameras are binary, or else text; the other form if that file is missing."""
    ways = [(folder / f"{name}.bin", binary), (folder / f"{name}.txt", text)]
    if not (folder / "cameras.bin").is_file():
        ways.reverse()
    for path, read in ways:
        if path.is_file():
            try:
                if path.suffix == ".bin":
                    refuse_longer(path)
                return read(path)
            except (struct.error, ValueError, IndexError, OverflowError, MemoryError, UnicodeDecodeError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{path} is damaged or cut off ({reason}): export it anew.") from error
    return None


def camera_pose(image: Any, folder: Path) -> NDArray[np.float64]:
    """Camera to world [4, 4] of an image, the camera looking along -z."""
    quaternion = np.array(image.qvec, dtype=np.float64)
    length = float(np.linalg.norm(quaternion))
    if not np.isfinite(length) or length == 0:
        raise UserError(f"The image {image.name} of the COLMAP model in {folder} has the rotation {quaternion}.")
    rotation = colmap_utils.qvec2rotmat(quaternion if abs(length - 1) < 1e-9 else quaternion / length)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, image.tvec
    pose = np.linalg.inv(pose)
    pose[:3, 1:3] *= -1
    return pose


def _coefficients(lenses: list[LensEntries], folder: Path) -> Tensor:
    """[N, 6], or [N, 12] if there are FISHEYE624 lenses, to which OpenCV's fisheye lenses are then converted."""
    widest = max((len(lens.distortion) for lens in lenses), default=6)
    rows = []
    for i, lens in enumerate(lenses):
        row = lens.distortion
        if len(row) < widest:
            if lens.kind is not CameraType.FISHEYE:
                raise UserError(f"The COLMAP model in {folder} mixes fisheye lenses with prism and perspective lenses.")
            row = (*row[:4], 0.0, 0.0, row[5], row[4], 0.0, 0.0, 0.0, 0.0)
            lenses[i] = lens._replace(kind=CameraType.FISHEYE624)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32).view(-1, widest)
