"""nerfstudio's parsers with this package's file readers, and positions in double precision."""

from __future__ import annotations

import errno
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.cameras import camera_utils
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import (
    DataParserConfig,
    DataparserOutputs,
)
from nerfstudio.data.dataparsers.blender_dataparser import Blender
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGP
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.data.utils import dataparsers_utils as splits
from torch import Tensor

from ns_support.data.formats.captures import Capture, CaptureFrame, find, read_capture, read_json, split_indices
from ns_support.data.formats.colmap_parser import CheckedColmap
from ns_support.data.formats.recognition import transforms_format
from ns_support.data.images import header
from ns_support.data.outputs import ExactOutputs, moved
from ns_support.data.points import in_scene, read_points
from ns_support.data.poses import checked_poses, common_offset
from ns_support.data.warnings import warn_once
from ns_support.errors import UserError

_FISHEYES = {CameraType.FISHEYE, CameraType.FISHEYE624}
_OLD_APPLIED = [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]]
"""The transform that early versions of ns-process-data applied to COLMAP's axes without writing it to the file."""


class CheckedNerfstudio(Nerfstudio):
    """nerfstudio's parser for its own format: the same scene, for all variants of the file.

    Each frame may have its own lens. A folder with one file per split is a single scene.
    """

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        config = self.config
        if transforms_format(config.data) == "blender":
            raise FileNotFoundError(errno.ENOENT, "No such file", str(config.data / "transforms.json"))
        self._capture = getattr(self, "_capture", None) or read_capture(config.data)  # once for all splits
        capture = self._capture
        folder = capture.source.parent
        if self.downscale_factor is None and config.downscale_factor is None:
            # nerfstudio opens an image to choose a folder of downscaled images: it must exist and be readable.
            first = next((frame.image for frame in capture.frames if frame.image.is_file()), capture.frames[0].image)
            header(first)
            self._get_fname(_within(first, folder), folder)
        names = [self._get_fname(_within(frame.image, folder), folder) for frame in capture.frames]
        order = np.argsort(np.array(names, dtype=object))
        capture = capture._replace(frames=[capture.frames[i] for i in order], poses=capture.poses[order])
        names = [names[i] for i in order]
        indices = split_indices(capture, _by_rule(config, names), split)
        offset = common_offset(capture.poses[:, :3, 3], capture.source)
        poses = capture.poses.copy()
        poses[:, :3, 3] -= offset
        oriented, transform = camera_utils.auto_orient_and_center_poses(
            torch.from_numpy(poses.astype(np.float32)),
            method=capture.meta.get("orientation_override", config.orientation_method),
            center_method=config.center_method,
        )
        scale = 1.0
        if config.auto_scale_poses:
            scale /= _largest(oriented, capture)
        scale *= config.scale_factor
        oriented[:, :3, 3] *= scale
        chosen = [capture.frames[i] for i in indices]
        cameras = make_cameras(chosen, oriented[torch.tensor(indices, dtype=torch.long)], capture)
        assert self.downscale_factor is not None
        cameras.rescale_output_resolution(scaling_factor=1.0 / self.downscale_factor)
        to_scene = moved(transform, offset)
        applied = self._applied(capture)
        scale *= _number(capture, "applied_scale", 1.0)
        metadata: dict[str, Any] = {
            "depth_filenames": self._files([frame.depth for frame in chosen], folder, "depths_"),
            "depth_unit_scale_factor": config.depth_unit_scale_factor,
            "mask_color": config.mask_color,
        }
        if config.load_3D_points:
            metadata |= _points(capture, to_scene, scale)
        return ExactOutputs(
            image_filenames=[names[i] for i in indices],
            cameras=cameras,
            scene_box=_box(config.scene_scale),
            mask_filenames=self._files([frame.mask for frame in chosen], folder, "masks_"),
            dataparser_scale=scale,
            dataparser_transform=_product(to_scene, applied),
            metadata=metadata,
        )

    def _files(self, files: list[Path | None], folder: Path, prefix: str) -> list[Path | None] | None:
        if not any(files):
            return None
        if not all(files):
            if prefix == "depths_":
                return None
            warn_once(f"{files.count(None)} of {len(files)} images in {folder} have no mask: all of them counts.")
        return [None if f is None else self._get_fname(_within(f, folder), folder, prefix) for f in files]

    def _applied(self, capture: Capture) -> Tensor | None:
        given = capture.meta.get("applied_transform")
        if given is None:
            return torch.tensor(_OLD_APPLIED) if (self.config.data / "colmap/sparse/0").exists() else None
        try:
            matrix = np.array(given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{capture.source} has an applied_transform that is no matrix of numbers.") from error
        if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
            raise UserError(
                f"{capture.source} has an applied_transform of shape {matrix.shape}; it must be 3 x 4 finite numbers."
            )
        return torch.from_numpy(matrix[:3])


class CheckedInstantNGP(InstantNGP):
    """nerfstudio's parser for instant-ngp's format: any number of images, a lens per frame, and named SfM points."""

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        config = self.config
        self._capture = getattr(self, "_capture", None) or read_capture(config.data, skip_missing=True)
        capture = self._capture
        offset = common_offset(capture.poses[:, :3, 3], capture.source)
        poses = capture.poses.copy()
        poses[:, :3, 3] -= offset
        poses = poses.astype(np.float32)
        poses[:, :3, 3] *= config.scene_scale
        names = [frame.image for frame in capture.frames]
        indices = split_indices(capture, _by_rule(config, names), split)
        chosen = [capture.frames[i] for i in indices]
        masks = [frame.mask for frame in chosen]
        to_scene = moved(torch.eye(4)[:3], offset)
        return ExactOutputs(
            image_filenames=[names[i] for i in indices],
            cameras=make_cameras(chosen, torch.from_numpy(poses)[torch.tensor(indices, dtype=torch.long)], capture),
            scene_box=_box(0.5 * _number(capture, "aabb_scale", 1.0)),
            mask_filenames=masks if any(masks) else None,
            dataparser_scale=config.scene_scale,
            dataparser_transform=to_scene,
            metadata=_points(capture, to_scene, config.scene_scale),
        )


class CheckedBlender(Blender):
    """nerfstudio's parser for Blender's format: also other image types, `camera_angle_y`, and missing splits."""

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        path = self._source(split)
        meta = {"frames": []} if path is None else read_json(path)
        frames = meta.get("frames")
        if not isinstance(frames, list) or (path is not None and not frames):
            raise UserError(f"{path} lists no frames.")
        files, poses = [], np.zeros((len(frames), 4, 4))
        for i, frame in enumerate(frames):
            try:
                name, poses[i] = frame["file_path"], np.array(frame["transform_matrix"], dtype=np.float64)
                if not isinstance(name, str):
                    raise TypeError("no name")
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"Frame {i} of {path} lacks a file_path or a 4 x 4 transform_matrix.") from error
            plain = self.data / (name.replace("./", "") + ".png")
            files.append(plain if plain.is_file() else _or(find(self.data, name), plain))
        poses = checked_poses(poses, [file.name for file in files], path)
        world = torch.from_numpy(poses[:, :3].astype(np.float32))
        world[..., 3] *= self.scale_factor
        metadata: dict[str, Any] = {}
        if self.config.ply_path is not None:
            points = read_points(self.config.data / self.config.ply_path)
            metadata |= {} if points is None else in_scene(points, torch.eye(4)[:3], self.scale_factor)
        return DataparserOutputs(
            image_filenames=files,
            cameras=self._cameras(world, files, meta, path),
            alpha_color=self.alpha_color_tensor,
            scene_box=_box(1.5),
            dataparser_scale=self.scale_factor,
            metadata=metadata,
        )

    def _source(self, split: str) -> Path | None:
        """The split's file, or the file used in its place; None if there are no evaluation images."""
        for name in (split, {"val": "test", "test": "val"}.get(split, split)):
            path = self.data / f"transforms_{name}.json"
            if path.is_file():
                return path
        if split == "train":
            raise FileNotFoundError(errno.ENOENT, "No such file", str(self.data / "transforms_train.json"))
        return None

    def _cameras(self, world: Tensor, files: list[Path], meta: dict[str, Any], path: Path | None) -> Cameras:
        # Missing images are reported later, or are not needed.
        known = [header(file)[:2] if file.is_file() else None for file in files]
        first = next((size for size in known if size is not None), None)
        if files and first is None:
            raise UserError(f"None of the images that {path} lists is there, the first is {files[0]}.")
        sizes = np.array([size or first for size in known], dtype=np.float64).reshape(-1, 2)
        angles = [meta.get("camera_angle_x"), meta.get("camera_angle_y")]
        try:
            numbers = [None if angle is None else float(angle) for angle in angles]
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} has camera angles that are no numbers: {angles}.") from error
        across = numbers[0] if files else 1.0
        if across is None or not 0 < across < np.pi or not 0 < (numbers[1] or across) < np.pi:
            raise UserError(f"{path} has camera_angle_x = {angles[0]}; it must be in radians, between 0 and pi.")
        fx = 0.5 * sizes[:, 0] / np.tan(0.5 * across)
        fy = fx if numbers[1] is None else 0.5 * sizes[:, 1] / np.tan(0.5 * numbers[1])
        focal, center = (fx, fy), 0.5 * sizes.T.astype(np.float32)
        return Cameras(
            world,
            *(torch.from_numpy(column)[:, None] for column in (*focal, *center)),
            *(torch.from_numpy(column).long()[:, None] for column in sizes.T),
            camera_type=CameraType.PERSPECTIVE,
        )


def _or(found: Path, otherwise: Path) -> Path:
    return found if found.is_file() else otherwise


def make_cameras(frames: list[CaptureFrame], poses: Tensor, capture: Capture) -> Cameras:
    """Cameras of a capture's frames.

    Args:
        frames: N of them.
        poses: [N, 4, 4].
        capture: the capture, for its `fisheye_crop_radius` and for messages.

    Raises:
        UserError: FISHEYE624 and other lenses are mixed.
    """
    lenses = [frame.lens for frame in frames]
    if len({len(lens.distortion) for lens in lenses}) > 1:
        raise UserError(f"{capture.source} mixes FISHEYE624 and other camera models: train on those of one kind.")

    def column(values: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).view(-1, 1)

    metadata = {}
    radius = capture.meta.get("fisheye_crop_radius")
    if radius is not None and lenses and all(lens.kind in _FISHEYES for lens in lenses):
        metadata["fisheye_crop_radius"] = float(radius)
    number = len(lenses[0].distortion) if lenses else 6
    return Cameras(
        poses[:, :3, :4],
        *(column([getattr(lens, name) for lens in lenses], torch.float32) for name in ("fx", "fy", "cx", "cy")),
        *(column([getattr(lens, name) for lens in lenses], torch.int64) for name in ("width", "height")),
        distortion_params=torch.tensor([lens.distortion for lens in lenses], dtype=torch.float32).view(-1, number),
        camera_type=column([lens.kind.value for lens in lenses], torch.int64),
        metadata=metadata,
    )


def _within(file: Path, folder: Path) -> Path:
    return file.relative_to(folder) if file.is_relative_to(folder) else file


def _by_rule(config: Any, names: list[Path]) -> tuple[Any, Any]:
    mode: Literal["fraction", "filename", "interval", "all"] = config.eval_mode
    if mode == "fraction":
        return splits.get_train_eval_split_fraction(names, config.train_split_fraction)
    if mode == "filename":
        return splits.get_train_eval_split_filename(names)
    if mode == "interval":
        return splits.get_train_eval_split_interval(names, config.eval_interval)
    return splits.get_train_eval_split_all(names)


def _largest(poses: Tensor, capture: Capture) -> float:
    largest = float(torch.max(torch.abs(poses[:, :3, 3])))
    if largest == 0:
        number = len(capture.frames)
        raise UserError(
            f"{'The only camera' if number == 1 else f'All {number} cameras'} of {capture.source} "
            f"{'is' if number == 1 else 'are'} in one place, which no scale can be told from; "
            "`nerfstudio-data --auto-scale-poses False` at the end of the command leaves the scale as it is."
        )
    return largest


def _number(capture: Capture, name: str, otherwise: float) -> float:
    value = capture.meta.get(name, otherwise)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{capture.source} has {name} = {value!r}, which is not a number.") from error
    if not (np.isfinite(number) and number > 0):
        raise UserError(f"{capture.source} has {name} = {number}; it must be positive.")
    return number


def _points(capture: Capture, to_scene: Tensor, scale: float) -> dict[str, Tensor]:
    named = capture.meta.get("ply_file_path")
    if not named:
        return {}
    points = read_points(find(capture.source.parent, str(named)))
    return {} if points is None else in_scene(points, to_scene, scale)


def _product(transform: Tensor, applied: Tensor | None) -> Tensor:
    if applied is None:
        return transform
    last = torch.tensor([[0, 0, 0, 1]], dtype=transform.dtype)
    return transform @ torch.cat([applied.to(transform), last], 0)


def _box(half: float) -> SceneBox:
    return SceneBox(aabb=torch.tensor([[-half] * 3, [half] * 3], dtype=torch.float32))


_CHECKED: dict[type, type] = {
    Nerfstudio: CheckedNerfstudio,
    InstantNGP: CheckedInstantNGP,
    Blender: CheckedBlender,
    ColmapDataParser: CheckedColmap,
}


def checked(config: DataParserConfig) -> DataParserConfig:
    """The configuration with this package's parser in place of nerfstudio's; a copy, as configurations are saved.

    Args:
        config: of any parser; one without a replacement here keeps its own.
    """
    copy = deepcopy(config)
    copy._target = _CHECKED.get(copy._target, copy._target)
    return copy
