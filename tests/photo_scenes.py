"""Photographs of a made-up room, with texture enough for SIFT: a floor, two walls and boxes, ray traced with NumPy."""

import functools
import math

import numpy as np
from PIL import Image


@functools.lru_cache
def _texture(seed, side=512):
    """Blobs of all sizes, [side, side, 3] in [0, 255]."""
    noise = np.random.default_rng(seed)
    total = np.zeros((side, side, 3))
    for cells in (8, 16, 32, 64, 128):
        small = Image.fromarray(noise.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), float) - 127.5
    return np.clip(127.5 + total * 0.6, 0, 255)


def _box(x, y, width, height):
    corner, right, back, up = np.array([x, y, 0.0]), (width, 0, 0), (0, width, 0), (0, 0, height)
    top = corner + up
    faces = [(corner, right, up), (corner, back, up), (top, right, back)]
    return [*faces, (corner + right, back, up), (corner + back, right, up)]


RECTANGLES = [
    ((-3, -3, 0), (6, 0, 0), (0, 6, 0)),
    ((-3, 3, 0), (6, 0, 0), (0, 0, 3)),
    ((-3, -3, 0), (0, 6, 0), (0, 0, 3)),
    *_box(-1.0, -0.2, 0.8, 1.0),
    *_box(0.3, 0.2, 0.6, 0.6),
    *_box(-0.1, -1.0, 0.5, 0.4),
]


def look_at(position, target=(0.0, 0.0, 0.5)):
    """World-to-camera rotation [3, 3], COLMAP's axes: x right, y down, z forward."""
    forward = np.asarray(target) - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def render(position, width=400, height=300, focal=380.0, target=(0.0, 0.0, 0.5)):
    """A photograph [height, width, 3] uint8, four rays to a pixel."""
    w, h, f = 2 * width, 2 * height, 2 * focal
    v, u = np.mgrid[0:h, 0:w] + 0.5
    directions = np.stack([(u - w / 2) / f, (v - h / 2) / f, np.ones_like(u)], -1) @ look_at(position, target)
    nearest, image = np.full((h, w), np.inf), np.full((h, w, 3), 127.0)
    for number, (corner, side, other) in enumerate(np.array(r, float) for r in RECTANGLES):
        normal = np.cross(side, other)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = ((corner - position) @ normal) / (directions @ normal)
            place = position + distance[..., None] * directions - corner
            a, b = place @ side / (side @ side), place @ other / (other @ other)
            hit = (distance > 1e-6) & (distance < nearest) & (a >= 0) & (a < 1) & (b >= 0) & (b < 1)
        texture = _texture(number)
        density = len(texture) / 3.0  # texels a unit of length
        rows = (b[hit] * np.linalg.norm(other) * density).astype(int) % len(texture)
        columns = (a[hit] * np.linalg.norm(side) * density).astype(int) % len(texture)
        image[hit], nearest[hit] = texture[rows, columns], distance[hit]
    return image.reshape(height, 2, width, 2, 3).mean((1, 3)).astype(np.uint8)


def positions(count, away=2.6, arc=math.pi / 2):
    """Places on an arc about the boxes, seen from the open side of the room."""
    angles = np.linspace(-arc / 2, arc / 2, count) - math.pi / 4
    heights = 1.2 + 0.3 * np.sin(3.0 * np.arange(count))
    return [np.array([away * math.cos(a), away * math.sin(a), z]) for a, z in zip(angles, heights, strict=True)]


def write_photographs(folder, count=12, suffix=".jpg", **how):
    """Photographs `view_00.jpg` and so on in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, position in enumerate(positions(count)):
        Image.fromarray(render(position, **how)).save(folder / f"view_{i:02d}{suffix}", quality=95)
    return folder
