"""The scene of all captures: a coloured sphere around each camera, the lenses, and the poses.

The colour of a pixel is a function of its ray's direction, so that a colour shows whether it is at the right ray.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ns_support.lenses.lens import Lens, LensType, make_lens

WIDTH, HEIGHT, FOCAL, COUNT = 40, 56, 48.0, 12
"""Of the images, in pixels: width, height and focal length; and the number of images."""
CENTER = (20.5, 27.0)
"""Principal point in pixels."""


def color_of(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours [*, 3] in [0, 1] of directions [*, 3] in camera coordinates: smooth, and without any symmetry."""
    x, y = directions[..., 0] / -directions[..., 2], directions[..., 1] / -directions[..., 2]
    return np.stack([0.5 + 0.9 * x, 0.5 + 0.7 * y, 0.5 + 0.5 * x - 0.5 * y], -1).clip(0.02, 0.98)


def perspective(coefficients: tuple[float, ...] = ()) -> Lens:
    """The lens of most cases."""
    return make_lens(LensType.PERSPECTIVE, (FOCAL, FOCAL), CENTER, (WIDTH, HEIGHT), coefficients)


def fisheye(coefficients: tuple[float, ...]) -> Lens:
    """One of the fisheye lenses, of 6 or 12 coefficients."""
    kind = LensType.FISHEYE624 if len(coefficients) == 12 else LensType.FISHEYE
    return make_lens(kind, (FOCAL, FOCAL), CENTER, (WIDTH, HEIGHT), coefficients)


def draw(lens: Lens | None = None, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """The image of a camera: the first `height` rows and `width` columns of the lens's pixels."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = (lens or perspective()).rays(torch.from_numpy(columns), torch.from_numpy(rows))
    return Image.fromarray((color_of(rays.directions.numpy()) * 255).round().astype(np.uint8))


def pose(i: int) -> NDArray[np.float64]:
    """Camera-to-world matrix [4, 4] of camera i: on a circle, looking at its centre."""
    angle = 2 * math.pi * i / COUNT
    back = np.array([math.cos(angle), math.sin(angle), 0.3]) / math.hypot(1, 0.3)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(back, right), back], -1)
    matrix[:3, 3] = 3.0 * back
    return matrix
