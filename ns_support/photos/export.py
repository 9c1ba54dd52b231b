"""`raygauss-photos`: from photographs or a video to a folder that any method of nerfstudio reads.

    raygauss-photos photos/ scene/
    ns-train nerfacto --data scene/

The folder has images/, transforms.json with a lens for each frame where they differ, sparse_pc.ply, masks/ if there are
masks, and COLMAP's own model in sparse/0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from nerfstudio.cameras.cameras import CameraType
from numpy.typing import NDArray

from ns_support.auto_data import AutoDataParserConfig
from ns_support.data.checks import check_data_folder
from ns_support.data.formats.colmap_cameras import read_colmap_cameras
from ns_support.data.formats.colmap_parser import OWN_AXES, camera_pose, model_points, registered_images
from ns_support.data.formats.lens_entries import LensEntries
from ns_support.data.ply import write_ply
from ns_support.errors import UserError
from ns_support.help import documented
from ns_support.photos.scene import find_poses
from ns_support.photos.settings import PhotosConfig, PoseSettings
from ns_support.runs.safe_files import replaced
from ns_support.runs.stopping import INTERRUPTED
from ns_support.terminal import say, show_command

_POINTS = "sparse_pc.ply"


class _Frame(NamedTuple):
    number: int
    name: str
    pose: NDArray[np.float64]
    lens: LensEntries


@documented
@dataclass
class PhotosExport(PoseSettings):
    """Finds the poses of photographs or of a video, and writes a nerfstudio folder."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")] = tyro.MISSING
    """The folder of photographs, or the video."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUTPUT")] = tyro.MISSING
    """The folder to write; it must not exist, be empty, or be what this command has written before."""

    def main(self) -> Path:
        """Write the folder; poses that are there are not found again.

        Raises:
            UserError: the source holds no photographs, no poses can be found, or the folder can't be written.
        """
        check_data_folder(self.source)
        settings = {name: getattr(self, name) for name in PoseSettings.__dataclass_fields__}
        config = PhotosConfig(**settings, result=self.output, prefix="--")
        parser = AutoDataParserConfig(photos=config)
        if not parser.needs_poses(self.source):
            parser.chosen(self.source)  # raises what is wrong with data that are of no format
            raise UserError(f"{self.source} has poses already: `ns-train raygauss --data {self.source}` trains on it.")
        folder = find_poses(self.source, config)
        write_transforms(folder)
        say(f"Written to {folder}.")
        show_command("train:", f"ns-train raygauss --data {folder}")
        return folder


def write_transforms(folder: Path) -> Path:
    """Write transforms.json and the points for a result with a COLMAP model in `sparse/0`.

    Args:
        folder: of the result.

    Returns:
        The file.

    Raises:
        UserError: it can't be written.
    """
    frames = _frames(folder / "sparse/0")
    if not frames:
        raise UserError(f"The COLMAP model in {folder / 'sparse/0'} has no registered image.")
    _write_points(folder)
    lenses = [_lens_entries(frame.lens) for frame in frames]
    shared = lenses[0] if all(lens == lenses[0] for lens in lenses) else {}
    masked = (folder / "masks").is_dir()
    listed = []
    for frame, lens in zip(frames, lenses, strict=True):
        entries: dict[str, Any] = {"file_path": f"images/{frame.name}", "transform_matrix": frame.pose.tolist()}
        if masked:
            entries["mask_path"] = f"masks/{frame.name}.png"
        listed.append(entries | ({} if shared else lens) | {"colmap_im_id": frame.number})
    fisheye = frames[0].lens.kind is CameraType.FISHEYE
    meta = {
        "camera_model": "OPENCV_FISHEYE" if fisheye else "OPENCV",
        **shared,
        "frames": listed,
        "applied_transform": OWN_AXES[:3].tolist(),
        "ply_file_path": _POINTS,
    }
    path = folder / "transforms.json"
    with replaced(path) as draft:
        draft.write_text(json.dumps(meta, indent=2), "utf8")
    return path


def _frames(model: Path) -> list[_Frame]:
    """The registered photographs in order of their names, with camera-to-world [4, 4] in nerfstudio's axes."""
    lenses = read_colmap_cameras(model)
    found = [
        _Frame(image.id, image.name, OWN_AXES @ camera_pose(image, model), lenses[image.camera_id])
        for image in registered_images(model)
    ]
    return sorted(found, key=lambda frame: frame.name)


def _lens_entries(lens: LensEntries) -> dict[str, float | int]:
    k1, k2, k3, k4, p1, p2 = lens.distortion[:6]
    coefficients = {"k1": k1, "k2": k2, "k3": k3, "k4": k4, "p1": p1, "p2": p2}
    size = {"w": lens.width, "h": lens.height}
    return size | {"fl_x": lens.fx, "fl_y": lens.fy, "cx": lens.cx, "cy": lens.cy} | coefficients


def _write_points(folder: Path) -> None:
    points = model_points(folder / "sparse/0") or []
    positions = np.array([point.xyz for point in points], np.float64).reshape(-1, 3) @ OWN_AXES[:3, :3].T
    colors = np.array([point.rgb for point in points], np.uint8).reshape(-1, 3)
    columns = {name: positions[:, i].astype(np.float32) for i, name in enumerate("xyz")}
    columns |= {name: colors[:, i] for i, name in enumerate(("red", "green", "blue"))}
    write_ply(folder / _POINTS, columns, ["points of COLMAP, in the axes of transforms.json"])


def entrypoint() -> None:
    """The command's entry point."""
    tyro.extras.set_accent_color("bright_yellow")
    try:
        tyro.cli(PhotosExport, prog="raygauss-photos", description=__doc__).main()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    entrypoint()
