"""Faults of a careless capture, put into the training views of a scene; the test views stay as they are.

Each function changes a copy that is not yet written, and returns what `faults.json` says of it: with the settings and
the seed, what was done to each view. "turn" is a rotation vector along the world's axes (degrees), "shift" is in the
scene's unit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from captures.copies import Frame, SceneCopy
from ns_support.data.images import read_image

Array = NDArray[np.float64]


def disturb_poses(scene: SceneCopy, degrees: float, percent: float, both: bool, seed: int) -> dict[str, Any]:
    """Turn cameras about their own centres and shift them, each about an axis and in a direction of its own.

    Args:
        scene: the copy.
        degrees: angle of the rotations.
        percent: length of the shifts, in percent of the training cameras' mean distance from what they look at.
        both: whether test cameras are disturbed as well.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    training = scene.of(training=True)
    distance = mean_distance(np.array([_pose(frame) for frame in training]))
    views: dict[str, Any] = {}
    for frame in training + (scene.of(training=False) if both else []):
        pose = _pose(frame)
        turn = degrees * _direction(random)
        shift = 0.01 * percent * distance * _direction(random)
        pose[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix() @ pose[:3, :3]
        pose[:3, 3] += shift
        frame.entries["transform_matrix"] = pose.tolist()
        views[frame.image.as_posix()] = {"turn": turn.tolist(), "shift": shift.tolist()}
    settings = {"degrees": degrees, "percent": percent, "both": both, "distance": distance}
    return {"fault": "poses", "seed": seed, "settings": settings, "views": views}


def mean_distance(poses: Array) -> float:
    """Mean distance of cameras from the point that is nearest to all their optical axes, by least squares.

    With axes that are all parallel, there are many such points: that nearest to the cameras' mean counts.

    Args:
        poses: [N, 4, 4], camera to world, looking along -z.
    """
    positions = poses[:, :3, 3] - poses[:, :3, 3].mean(0)
    axes = poses[:, :3, 2] / np.linalg.norm(poses[:, :3, 2], axis=1, keepdims=True)
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    focus = np.linalg.lstsq(across.sum(0), (across @ positions[..., None]).sum(0)[:, 0], rcond=1e-9)[0]
    return float(np.linalg.norm(positions - focus, axis=1).mean())


def change_exposures(scene: SceneCopy, stops: float, balance: float, linear: bool, seed: int) -> dict[str, Any]:
    """Multiply the colours of each training image, as if its exposure and white balance had been set on their own.

    Args:
        scene: the copy.
        stops: largest exposure compensation, up or down (EV); a stop is a factor of two.
        balance: largest change of red and of blue, up or down (percent).
        linear: whether linear light is multiplied, as in a camera, or sRGB values.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    views: dict[str, Any] = {}
    for frame in scene.of(training=True):
        compensation = random.uniform(-stops, stops)
        red, blue = 1 + 0.01 * random.uniform(-balance, balance, 2)
        factors = 2**compensation * np.array([red, 1.0, blue])
        scene.changed[frame.image] = exposed(read_image(scene.source / frame.image), factors, linear)
        views[frame.image.as_posix()] = {"stops": compensation, "factors": factors.tolist()}
    settings = {"stops": stops, "balance": balance, "linear": linear}
    return {"fault": "exposure", "seed": seed, "settings": settings, "views": views}


def exposed(image: NDArray[np.uint8], factors: Array, linear: bool) -> NDArray[np.uint8]:
    """Multiply colours and clip them, as a sensor does; alpha stays.

    Args:
        image: [H, W, 3 or 4], sRGB.
        factors: [3], for red, green and blue.
        linear: whether linear light is multiplied, or sRGB values.
    """
    values = np.arange(256)[:, None] / 255
    table = _to_srgb((_to_linear(values) * factors).clip(0, 1)) if linear else (values * factors).clip(0, 1)
    levels = (255 * table).round().astype(np.uint8)
    changed = image.copy()
    for channel in range(3):
        changed[..., channel] = levels[image[..., channel], channel]
    return changed


def _to_linear(values: Array) -> Array:
    """IEC 61966-2-1."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _to_srgb(light: Array) -> Array:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def paste_people(scene: SceneCopy, share: float, area: float, seed: int) -> dict[str, Any]:
    """Paste an opaque, textured blob into some of the training images, another one at another place in each.

    Args:
        scene: the copy.
        share: of the training images (percent).
        area: of an image (percent).
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    training = scene.of(training=True)
    chosen = random.choice(len(training), round(0.01 * share * len(training)), replace=False)
    views: dict[str, Any] = {}
    for frame in (training[i] for i in sorted(chosen)):
        image = read_image(scene.source / frame.image)
        inside, corner = blob(image.shape[0], image.shape[1], 0.01 * area, random)
        scene.changed[frame.image] = pasted(image, inside, corner, random)
        middle = [round(0.5 * size + start) for size, start in zip(inside.shape, corner, strict=True)]
        covered = 100 * float(inside.sum()) / (image.shape[0] * image.shape[1])
        views[frame.image.as_posix()] = {"row": middle[0], "column": middle[1], "area": covered}
    return {"fault": "people", "seed": seed, "settings": {"share": share, "area": area}, "views": views}


def blob(
    height: int, width: int, area: float, random: np.random.Generator
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """A wavy shape of the proportions of a person, twice as high as wide.

    Args:
        height: of the image.
        width: of the image.
        area: of the shape, as a part of the image's.
        random: chooses outline and place.

    Returns:
        Which pixels of a box belong to the shape [h, w], and the row and the column of the box's corner in the image.
    """
    waves = {3: 0.15, 5: 0.1}
    # Of the outline r(phi) = 1 + sum of w sin(k phi + ...), the area is pi (1 + sum of w^2 / 2).
    half = np.sqrt(area * height * width / (2 * np.pi * (1 + sum(w * w for w in waves.values()) / 2)))
    reach = 1 + sum(waves.values())
    size = min(height, max(2, 2 * round(2 * half * reach))), min(width, max(2, 2 * round(half * reach)))
    row, column = np.indices(size) + 0.5
    y, x = (row - size[0] / 2) / (2 * half), (column - size[1] / 2) / half
    angle, radius = np.arctan2(y, x), np.ones(size)
    for number, height_of_wave in waves.items():
        radius += height_of_wave * np.sin(number * angle + random.uniform(0, 2 * np.pi))
    corner = int(random.integers(height - size[0] + 1)), int(random.integers(width - size[1] + 1))
    return np.hypot(x, y) < radius, corner


def pasted(
    image: NDArray[np.uint8], inside: NDArray[np.bool_], corner: tuple[int, int], random: np.random.Generator
) -> NDArray[np.uint8]:
    """An image [H, W, 3 or 4] with random colours in a shape; see `blob`."""
    height, width = inside.shape
    coarse = Image.fromarray(random.integers(0, 256, (8, 4, 3), dtype=np.uint8))
    texture = np.full((height, width, image.shape[2]), 255, np.uint8)
    texture[..., :3] = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    changed = image.copy()
    box = changed[corner[0] : corner[0] + height, corner[1] : corner[1] + width]
    box[inside] = texture[inside]
    return changed


def _pose(frame: Frame) -> Array:
    """[4, 4], of a matrix with or without its last row."""
    given = np.array(frame.entries["transform_matrix"], dtype=np.float64).reshape(-1, 4)
    return np.concatenate([given[:3], [[0.0, 0.0, 0.0, 1.0]]])


def _direction(random: np.random.Generator) -> Array:
    """A random vector [3] of length 1, every direction as likely as every other."""
    vector = random.normal(size=3)
    return vector / np.linalg.norm(vector)
