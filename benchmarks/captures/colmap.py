"""Captures in COLMAP's binary format."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captures.sphere import CENTER, COUNT, FOCAL, HEIGHT, WIDTH, pose
from captures.writing import write_images
from ns_support.lenses.lens import Lens

MODEL_IDS = {
    "SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "OPENCV_FISHEYE": 5,
    "FULL_OPENCV": 6, "FOV": 7, "SIMPLE_RADIAL_FISHEYE": 8, "RADIAL_FISHEYE": 9, "THIN_PRISM_FISHEYE": 10,
    "RAD_TAN_THIN_PRISM_FISHEYE": 11,
}  # fmt: skip


def colmap(
    model: str,
    rest: tuple[float, ...],
    lens: Lens | None = None,
    where: str = "sparse/0",
    sfm: bool = True,
    images: str = "images",
    poses: Callable[[int], NDArray[np.float64]] = pose,
) -> Callable[[Path], None]:
    """A COLMAP model and its images.

    Args:
        model: camera model.
        rest: its parameters after the focal lengths and the principal point.
        lens: that the images are drawn with.
        where: folder of the model.
        sfm: whether there are points.
        images: folder of the images.
        poses: camera-to-world matrix [4, 4] of camera i.
    """

    def make(folder: Path) -> None:
        write_images(folder, lens=lens)
        if images != "images":
            (folder / images).parent.mkdir(parents=True, exist_ok=True)
            (folder / "images").rename(folder / images)
        (folder / where).mkdir(parents=True, exist_ok=True)
        one = "SIMPLE" in model or model in ("RADIAL", "RADIAL_FISHEYE")
        parameters = [FOCAL, *([] if one else [FOCAL]), *CENTER, *rest]
        camera = struct.pack("<QiiQQ", 1, 1, MODEL_IDS[model], WIDTH, HEIGHT) + struct.pack(
            f"<{len(parameters)}d", *parameters
        )
        (folder / where / "cameras.bin").write_bytes(camera)
        data = struct.pack("<Q", COUNT)
        for i in range(COUNT):
            to_world = poses(i)
            to_world[:3, 1:3] *= -1
            rotation = to_world[:3, :3].T
            data += struct.pack("<i7di", i + 1, *quaternion(rotation), *(-rotation @ to_world[:3, 3]), 1)
            data += f"{i:03d}.png".encode() + b"\0" + struct.pack("<Q", 0)
        (folder / where / "images.bin").write_bytes(data)
        if sfm:
            body = b"".join(struct.pack("<QdddBBBdQ", i + 1, i, 0.0, 1.0, 9, 9, 9, 0.5, 0) for i in range(5))
            (folder / where / "points3D.bin").write_bytes(struct.pack("<Q", 5) + body)

    return make


def quaternion(rotation: NDArray[np.float64]) -> list[float]:
    """w, x, y, z of a rotation matrix: the eigenvector of the largest eigenvalue of Bar-Itzhack's matrix."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    matrix = np.array(
        [[a - e - i, b + d, c + g, h - f], [0, e - a - i, f + h, c - g], [0, 0, i - a - e, d - b], [0, 0, 0, a + e + i]]
    )
    values, vectors = np.linalg.eigh((matrix + np.triu(matrix, 1).T) / 3.0, UPLO="U")
    x, y, z, w = vectors[:, values.argmax()]
    return [w, x, y, z] if w >= 0 else [-w, -x, -y, -z]


def both_forms(folder: Path) -> None:
    """Write a COLMAP model with a text file that is out of date."""
    colmap("PINHOLE", ())(folder)
    (folder / "sparse/0/cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} 20 20 20 28\n")
