"""A data set of NeRFBaselines as a folder that nerfstudio's parser reads, and its cameras as nerfstudio's.

NeRFBaselines has cameras in OpenCV's axes (y down, z ahead) and distortion as k1, k2, p1, p2, k3, k4. The images stay
where they are: the folder refers to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from numpy.typing import NDArray

from ns_support.data.ply import write_ply
from ns_support.errors import UserError
from ns_support.runs.safe_files import replaced

FILE = "transforms.json"
_POINTS = "points.ply"
_MODELS = {"pinhole": "PINHOLE", "opencv": "OPENCV", "opencv_fisheye": "OPENCV_FISHEYE"}
_TYPES = {name: CameraType.FISHEYE if "fisheye" in name else CameraType.PERSPECTIVE for name in _MODELS}
MODELS = frozenset(_MODELS)
"""Camera models of NeRFBaselines that can be used."""
_DISTORTION = ("k1", "k2", "p1", "p2", "k3", "k4")
_IN_OUR_ORDER = [0, 1, 4, 5, 2, 3]


def write_dataset(dataset: Mapping[str, Any], folder: Path) -> None:
    """Write transforms.json and, if there are points, a PLY file of them.

    Args:
        dataset: of NeRFBaselines, with `cameras`, `image_paths` and perhaps `mask_paths`, `points3D_xyz`,
            `points3D_rgb`.
        folder: to write to; made if necessary.

    Raises:
        UserError: a camera model can't be used, or a file can't be written.
    """
    cameras = dataset["cameras"]
    poses, sizes = gl_poses(cameras.poses), cameras.image_sizes
    masks = dataset.get("mask_paths")
    frames = []
    for i, path in enumerate(dataset["image_paths"]):
        fx, fy, cx, cy = (float(value) for value in cameras.intrinsics[i])
        frame = {
            "file_path": str(Path(path).resolve()),
            "transform_matrix": [*poses[i].tolist(), [0.0, 0.0, 0.0, 1.0]],
            **{"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": int(sizes[i][0]), "h": int(sizes[i][1])},
            **dict(zip(_DISTORTION, _distortion(cameras.distortion_parameters[i]).tolist(), strict=True)),
        }
        frames.append(frame if masks is None else frame | {"mask_path": str(Path(masks[i]).resolve())})
    models = {_model_name(number) for number in cameras.camera_models}
    if len(models) > 1:
        raise UserError(f"The data set has cameras of several models ({', '.join(sorted(models))}); give one of them.")
    meta: dict[str, Any] = {"camera_model": _MODELS[models.pop()], "frames": frames}
    folder.mkdir(parents=True, exist_ok=True)
    points = dataset.get("points3D_xyz")
    if points is not None and len(points) > 0:
        colors = np.asarray(dataset["points3D_rgb"], np.uint8)
        columns = {name: np.asarray(points, np.float32)[:, i] for i, name in enumerate("xyz")}
        write_ply(folder / _POINTS, columns | {n: colors[:, i] for i, n in enumerate(("red", "green", "blue"))})
        meta["ply_file_path"] = _POINTS
    with replaced(folder / FILE) as draft:
        draft.write_text(json.dumps(meta), "utf8")


def gl_poses(poses: NDArray[Any]) -> NDArray[np.float64]:
    """Camera-to-world [N, 3, 4] with y up and z backwards, from OpenCV's axes."""
    turned = np.array(poses, np.float64)[..., :3, :4]
    turned[..., 1:3] *= -1
    return turned


def nerfstudio_camera(camera: Any, transform: torch.Tensor, scale: float) -> Cameras:
    """One of NeRFBaselines' cameras in nerfstudio's scene.

    Args:
        camera: a single one.
        transform: [3, 4] of the data parser.
        scale: of the data parser.

    Returns:
        Cameras of shape [1].
    """
    pose = torch.from_numpy(gl_poses(camera.poses)).reshape(3, 4)
    whole = torch.cat([pose, torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])
    placed = transform.double() @ whole
    placed[:, 3] *= scale
    fx, fy, cx, cy = (float(value) for value in np.reshape(camera.intrinsics, -1))
    width, height = (int(value) for value in np.reshape(camera.image_sizes, -1))
    distortion = _distortion(np.reshape(camera.distortion_parameters, -1))[_IN_OUR_ORDER]
    return Cameras(
        placed.float()[None],
        *(fx, fy, cx, cy, width, height),
        distortion_params=torch.from_numpy(distortion).float()[None],
        camera_type=_TYPES[_model_name(np.reshape(camera.camera_models, -1)[0])],
    )


def _distortion(values: NDArray[Any]) -> NDArray[np.float64]:
    """[6], zeros where there are fewer."""
    padded = np.zeros(6)
    padded[: min(len(values), 6)] = values[:6]
    return padded


def _model_name(number: Any) -> str:
    from nerfbaselines import camera_model_from_int

    name: str = camera_model_from_int(int(number))
    if name not in _MODELS:
        raise UserError(f"Cameras of the model {name!r} can't be used: it must be {', '.join(sorted(_MODELS))}.")
    return name
