"""Rays of every camera model: their error, and the time for an image, against nerfstudio's `generate_rays`.

    python benchmarks/rays.py

Error: the largest angle (radians) between a pixel's ray and its closed form in NumPy's float64, with the distortion
inverted by SciPy's `fsolve`, over `--checked` pixels; for this package's rays and for nerfstudio's ("none" if it is
NaN). Time: images of `--pixels` squared rays, measured in turn (A B C A B C ...), the smallest of `--rounds`: the first
image of a lens, further images of the same lens, and nerfstudio's.
"""

from __future__ import annotations

import argparse
import math
import platform
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common.report import write_json
from common.timing import milliseconds
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from numpy.typing import NDArray
from scipy.optimize import fsolve
from scipy.spatial.transform import Rotation

from ns_support import rays
from ns_support.lenses.kept import KeptByLens

OPENCV = (0.1, -0.05, 0.01, -0.002, 0.002, -0.003)
FISHEYE = (0.05, -0.01, 0.002, -0.0005, 0.0, 0.0)
ARIA = (0.03, -0.01, 0.002, 0.001, -0.0003, 0.0001, 0.0008, -0.0005, 0.001, -0.0002, 0.0007, 0.0003)
CASES: list[tuple[str, CameraType, tuple[float, ...] | None, float]] = [
    ("perspective", CameraType.PERSPECTIVE, None, 1.1),
    ("perspective, OPENCV", CameraType.PERSPECTIVE, OPENCV, 1.1),
    ("fisheye", CameraType.FISHEYE, None, 0.45),
    ("fisheye, OPENCV_FISHEYE", CameraType.FISHEYE, FISHEYE, 0.45),
    ("fisheye624, to 84 degrees", CameraType.FISHEYE624, ARIA, 0.5),
    ("fisheye624, to 135 degrees", CameraType.FISHEYE624, ARIA, 0.3),
    ("equirectangular", CameraType.EQUIRECTANGULAR, None, 0.5),
    ("stereo panorama", CameraType.OMNIDIRECTIONALSTEREO_L, None, 0.5),
    ("vr180", CameraType.VR180_L, None, 0.5),
    ("orthophoto", CameraType.ORTHOPHOTO, None, 0.5),
]
"""Name, camera model, distortion, and the focal length as a fraction of the image's width."""
Vector = NDArray[np.float64]


def make_camera(kind: CameraType, distortion: tuple[float, ...] | None, focal: float, pixels: int) -> Cameras:
    """One camera whose axes are along none of the scene's."""
    rotation = torch.from_numpy(Rotation.from_euler("xyz", (0.4, -0.6, 0.2)).as_matrix()).float()
    pose = torch.cat([rotation, 4 * rotation[:, 2:]], 1)[None]
    panorama = CameraType.EQUIRECTANGULAR.value <= kind.value <= CameraType.VR180_R.value
    fx, fy = focal * pixels, float(pixels) if panorama else focal * pixels
    coefficients = None if distortion is None else torch.tensor([distortion])
    size = (pixels / 2, pixels / 2, pixels, pixels)
    return Cameras(pose, fx, fy, *size, distortion_params=coefficients, camera_type=kind)


def opencv(point: Vector, k: Vector) -> Vector:
    """Distort a point [2] with OpenCV's coefficients k [6]: k1 to k4, p1, p2."""
    x, y = point
    r2 = x * x + y * y
    d = 1 + k[0] * r2 + k[1] * r2**2 + k[2] * r2**3 + k[3] * r2**4
    u = x * d + 2 * k[4] * x * y + k[5] * (r2 + 2 * x * x)
    return np.array([u, y * d + k[4] * (r2 + 2 * y * y) + 2 * k[5] * x * y])


def aria(point: Vector, k: Vector) -> Vector:
    """Distort a point [2] with FISHEYE624's coefficients k [12]: six radial, two tangential, four thin-prism."""
    theta = math.hypot(*point)
    x, y = point * (1 + sum(k[i] * theta ** (2 * i + 2) for i in range(6)))
    r2 = x * x + y * y
    u = x + (2 * x * x + r2) * k[6] + 2 * x * y * k[7] + k[8] * r2 + k[9] * r2 * r2
    return np.array([u, y + (2 * y * y + r2) * k[7] + 2 * x * y * k[6] + k[10] * r2 + k[11] * r2 * r2])


def exact_direction(camera: Cameras, row: int, column: int) -> Vector:
    """Direction [3] of a pixel's ray, in scene coordinates."""
    kind = CameraType(int(camera.camera_type))
    u, v = (column + 0.5 - camera.cx.item()) / camera.fx.item(), (row + 0.5 - camera.cy.item()) / camera.fy.item()
    if kind in (CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.FISHEYE624):
        point = np.array([u, v])
        if camera.distortion_params is not None:
            k = camera.distortion_params.reshape(-1).double().numpy()
            forward = aria if kind is CameraType.FISHEYE624 else opencv
            point = fsolve(lambda p: forward(p, k) - (u, v), point, xtol=1e-12)
        direction = np.array([point[0], -point[1], -1.0])
        if kind is not CameraType.PERSPECTIVE:
            theta = math.hypot(*point)
            direction = np.array([*(np.sinc(theta / math.pi) * point * (1, -1)), -math.cos(theta)])
    elif kind is CameraType.ORTHOPHOTO:
        direction = np.array([0.0, 0.0, -1.0])
    else:
        right = math.pi * u * (0.5 if kind is CameraType.VR180_L else 1.0)
        up = -math.pi * v
        direction = np.array([math.cos(up) * math.sin(right), math.sin(up), -math.cos(up) * math.cos(right)])
    direction = camera.camera_to_worlds[0, :, :3].double().numpy() @ direction
    return direction / np.linalg.norm(direction)


def largest_angle(bundle: RayBundle, camera: Cameras, picked: NDArray[np.int64]) -> float:
    """Largest angle between the rays and their closed form (radians); NaN if a ray is NaN."""
    chords = [
        np.linalg.norm(bundle.directions[i, j].double().numpy() - exact_direction(camera, i, j))
        for i, j in picked.tolist()
    ]
    return float(2 * np.arcsin(np.minimum(0.5 * np.array(chords), 1.0)).max())


def first_milliseconds(work: Callable[[], RayBundle]) -> float:
    """Time of `work` without what `ns_support.rays` keeps of lenses, which is restored afterwards."""
    kept, rays._KEPT = rays._KEPT, KeptByLens(0)
    took = milliseconds(work)
    rays._KEPT = kept
    return took


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=400, help="height and width of the timed images")
    parser.add_argument("--checked", type=int, default=500, help="pixels whose rays are checked")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence")
    picked = np.random.default_rng(0).integers(0, options.pixels, (options.checked, 2))
    picked[:2] = [[0, 0], [options.pixels // 2, options.pixels // 2]]
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| camera | angle | nerfstudio's | ms, first | ms, next | ms, nerfstudio's |\n|---|---|---|---|---|---|")
    rows = []
    for name, kind, distortion, focal in CASES:
        camera = make_camera(kind, distortion, focal, options.pixels)

        def ours(camera: Cameras = camera) -> RayBundle:
            return rays.camera_rays(camera)

        def theirs(camera: Cameras = camera) -> RayBundle:
            return camera.generate_rays(camera_indices=0, keep_shape=True)

        angles = [largest_angle(work(), camera, picked) for work in (ours, theirs)]
        ours()
        rounds = [[first_milliseconds(ours), milliseconds(ours), milliseconds(theirs)] for _ in range(options.rounds)]
        times = np.array(rounds).min(0)
        rows.append({"camera": name, "angles": angles, "milliseconds": times.tolist()})
        shown = ["none" if math.isnan(angle) else f"{angle:.1e}" for angle in angles]
        print(f"| {name} | {' | '.join(shown)} | {' | '.join(f'{t:.1f}' for t in times)} |", flush=True)
    write_json(options.json, rows)


if __name__ == "__main__":
    main()
