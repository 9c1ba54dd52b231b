"""One view of a trained run at several focus distances, through `raygauss-render`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from common.montage import montage
from PIL import Image

from ns_support.commands.render import CameraPath
from raycasting.popping import pose_at

AZIMUTH, ELEVATION, DISTANCE = 207.0, 15.0, 2.7
"""Of the camera, which looks at the origin (degrees, scene units): the pawn is in front, the ring at the back."""
FIELD, SIDE = 44.0, 240
"""Vertical field of view (degrees), and height and width of the images (pixels)."""
SHAPES = (
    ("the pawn", (-0.4, -0.42, 0.1)),
    ("the ball", (-0.4, 0.4, -0.05)),
    ("the ring", (0.44, 0.4, 0.07)),
)
"""What is brought into focus, and where it is in the demo's scene."""


def depth_of(place: tuple[float, float, float]) -> float:
    """Distance along the camera's axis."""
    pose = pose_at(AZIMUTH, ELEVATION, DISTANCE)
    return float((pose[:, 3] - torch.tensor(place)) @ pose[:, 2])


def write_path(path: Path) -> None:
    """The camera, as the viewer writes camera paths."""
    pose = torch.cat([pose_at(AZIMUTH, ELEVATION, DISTANCE), torch.tensor([[0.0, 0.0, 0.0, 1.0]])])
    frame = {"camera_to_world": pose.flatten().tolist(), "fov": FIELD, "aspect": 1.0}
    size = {"camera_type": "perspective", "render_height": SIDE, "render_width": SIDE}
    path.write_text(json.dumps({**size, "fps": 1, "seconds": 1, "camera_path": [frame]}))


def picture(run: Path, path: Path, aperture: float, samples: int) -> tuple[Image.Image, list[str]]:
    """The pinhole's image and those of the three focus distances, and the command of each.

    Args:
        run: folder of a run of `raygauss` on the scene of examples/make_scene.py, in its own coordinates.
        path: the camera path to write and to render.
        aperture: diameter of the lens (scene units).
        samples: of the lens.
    """
    write_path(path)
    lenses: list[tuple[str, float, float | None]] = [("a pinhole", 0.0, None)]
    lenses += [(f"{name}: {depth_of(place):.2f}", aperture, round(depth_of(place), 2)) for name, place in SHAPES]
    images, commands = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i, (_, opening, focus) in enumerate(lenses):
            output = Path(folder) / f"{i}.mp4"
            options = {"output_format": "images", "image_format": "png", "lens_samples": samples}
            lens = {"aperture": opening, "focus_distance": focus}
            CameraPath(run, output, camera_path_filename=path, **options, **lens).main()
            images.append(np.asarray(Image.open(output.with_suffix("") / "00000.png").convert("RGB")))
            commands.append(
                f"raygauss-render camera-path --load-config RUN --camera-path-filename {path.name} --output-format "
                f"images --aperture {opening:g} --focus-distance {focus} --lens-samples {samples}"
            )
    return montage([(images, [name for name, _, _ in lenses])]), commands[1:]
