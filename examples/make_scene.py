"""Make a small synthetic scene, images and camera poses, in the format of NeRF's Blender scenes.

A few solid shapes (`shapes.py`) on a chequered dish, rendered by sphere tracing, with soft shadows, ambient occlusion
and view-dependent highlights. The background is transparent. The same arguments always give the same files.

    python examples/make_scene.py --output scene
    ns-train raygauss --data scene blender-data

Notation: points and directions are [3, N] float32, so that each coordinate is contiguous in memory; distances are
[N]. z points up. Colours are linear light until `encode`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from rich.progress import track
from shapes import SCENE, Array, Shape, length, rgb

CAMERA_ANGLE_X = 0.6911
"""Horizontal field of view in radians, as in NeRF's Blender scenes."""
CAMERA_RADIUS = 4.0
"""Distance of every camera from the origin."""
BOUND = 1.25
"""Radius of the sphere around the origin that contains all shapes: rays that miss it are not traced."""
RAYS_AT_ONCE = 2**18
"""Rays per batch: larger images are traced in batches of this size, to bound the memory."""


# ---------------------------------------------------------------------------------------------------------- rendering


def unit(v: Array) -> Array:
    """Normalise vectors [3, N]."""
    return v / length(*v)


SUN = unit(np.array([[-0.45], [-0.55], [0.85]], np.float32))
SUNLIGHT, SKYLIGHT, GROUNDLIGHT = 2.0 * rgb("fff1dd"), 0.95 * rgb("dcebff"), 0.5 * rgb("ffe3c4")


def distance_to_all(shapes: Sequence[Shape], p: Array) -> Array:
    """Distance [N] from points [3, N] to the nearest shape."""
    nearest = shapes[0].distance(shapes[0].to_local(p))
    for shape in shapes[1:]:
        np.minimum(nearest, shape.distance(shape.to_local(p)), out=nearest)
    return nearest


def trace(shapes: Sequence[Shape], origins: Array, directions: Array) -> Array:
    """Distance [N] along unit rays to the first surface; inf for a miss."""
    middle = -(origins * directions).sum(axis=0)
    inside = middle**2 - (origins**2).sum(axis=0) + BOUND**2
    half = np.sqrt(np.maximum(inside, 0.0))
    # From the camera on, which may be among the shapes.
    t, end = np.maximum(middle - half, 0.0), middle + half
    hit = np.full(t.shape, np.inf, np.float32)
    active = np.flatnonzero(inside > 0.0)
    for _ in range(96):
        gap = distance_to_all(shapes, origins[:, active] + t[active] * directions[:, active])
        t[active] += gap
        arrived = gap < 5e-4
        hit[active[arrived]] = t[active[arrived]]
        active = active[~arrived & (t[active] < end[active])]
        if not active.size:
            break
    return hit


def normals(shapes: Sequence[Shape], p: Array) -> Array:
    """Unit surface normals [3, N], from finite differences over the corners of a tetrahedron."""
    corners = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32)[..., None]
    return unit(sum((corner * distance_to_all(shapes, p + 1e-3 * corner) for corner in corners), np.zeros_like(p)))


def sunlit(shapes: Sequence[Shape], p: Array) -> Array:
    """Visible fraction of the sun [N] in [0, 1]; a shadow's edge widens with the distance to the occluder."""
    light, t = np.ones(p.shape[1], np.float32), np.full(p.shape[1], 0.02, np.float32)
    active = np.arange(p.shape[1])
    for _ in range(32):
        gap = distance_to_all(shapes, p[:, active] + t[active] * SUN)
        light[active] = np.minimum(light[active], np.clip(0.5 + 7.0 * gap / t[active], 0.0, 1.0))
        t[active] += np.clip(gap, 0.015, 0.15)
        active = active[(light[active] > 0.0) & (t[active] < 1.8)]
    return light * light * (3.0 - 2.0 * light)


def openness(shapes: Sequence[Shape], p: Array, normal: Array) -> Array:
    """Ambient occlusion: visible fraction of the sky [N] in [0, 1], from distances along the normal."""
    closed = sum(
        (
            0.6**i * np.maximum(h - distance_to_all(shapes, p + h * normal), 0.0)
            for i, h in enumerate((0.03, 0.09, 0.2, 0.35))
        ),
        np.zeros(p.shape[1], np.float32),
    )
    return np.clip(1.0 - 2.2 * closed, 0.0, 1.0)


def shade(shapes: Sequence[Shape], p: Array, directions: Array) -> Array:
    """Linear RGB [3, N] of surface points [3, N] seen along the rays' directions [3, N]."""
    normal = normals(shapes, p)
    owner = np.stack([shape.distance(shape.to_local(p)) for shape in shapes]).argmin(axis=0)
    albedo, shininess, gloss = np.empty_like(p), np.empty_like(p[0]), np.empty_like(p[0])
    for i, shape in enumerate(shapes):
        mine = owner == i
        albedo[:, mine] = shape.color(shape.to_local(p[:, mine]))
        shininess[mine], gloss[mine] = shape.shininess, shape.gloss

    facing = np.maximum((normal * SUN).sum(axis=0), 0.0)
    sun = sunlit(shapes, p + 2e-3 * normal)
    sky = openness(shapes, p, normal)
    upward = 0.5 + 0.5 * normal[2]
    diffuse = facing * sun * SUNLIGHT + sky * (upward * SKYLIGHT + (1.0 - upward) * GROUNDLIGHT)
    halfway = unit(SUN - directions)
    highlight = gloss * sun * np.maximum((normal * halfway).sum(axis=0), 0.0) ** shininess
    grazing = 1.0 - np.maximum(-(normal * directions).sum(axis=0), 0.0)
    sheen = 0.25 * gloss * sky * upward * grazing**4
    return 0.45 * albedo * diffuse + highlight * SUNLIGHT + sheen * SKYLIGHT


def encode(linear: Array) -> Array:
    """Convert linear light to display values in [0, 1]; bright values are compressed instead of clipped."""
    rolled = np.where(linear > 0.6, 0.6 + 0.4 * np.tanh((linear - 0.6) / 0.4), linear)
    return np.clip(rolled, 0.0, 1.0) ** (1.0 / 2.2)


def color_and_hit(shapes: Sequence[Shape], origins: Array, directions: Array) -> Array:
    """Display RGB and coverage [4, N] of rays: coverage is 1 and 0 for hits and misses, and RGB is 0 for misses."""
    t = trace(shapes, origins, directions)
    hit = np.isfinite(t)
    found = np.zeros((4, t.size), np.float32)
    towards = directions[:, hit]
    found[:3, hit] = encode(shade(shapes, origins[:, hit] + t[hit] * towards, towards))
    found[3] = hit
    return found


def rays(pose: Array, resolution: int, samples: int) -> tuple[Array, Array]:
    """Origins and unit directions [3, N] of a square image's rays, `samples` x `samples` per pixel.

    Args:
        pose: [4, 4] camera to world; the camera looks along its -z, with y up.
        resolution: pixels on a side.
        samples: rays on a side of a pixel. Rays are ordered by pixel row, pixel column, then within the pixel.
    """
    side = (np.arange(resolution * samples, dtype=np.float32) + 0.5) / (resolution * samples) - 0.5
    y, x = (
        a.reshape(resolution, samples, resolution, samples).swapaxes(1, 2)
        for a in np.meshgrid(-side, side, indexing="ij")
    )
    scale = 2.0 * math.tan(CAMERA_ANGLE_X / 2.0)
    local = np.stack([scale * x.ravel(), scale * y.ravel(), np.full(x.size, -1.0, np.float32)])
    directions = unit(pose[:3, :3] @ local).astype(np.float32)
    return np.broadcast_to(pose[:3, 3:], directions.shape), directions


def draw(pose: ArrayLike, resolution: int, samples: int = 3, shapes: Sequence[Shape] = SCENE) -> NDArray[np.uint8]:
    """Render an image [H, W, 4] of the shapes: RGB and straight (not premultiplied) alpha.

    Args:
        pose: [4, 4] camera to world.
        resolution: pixels on a side.
        samples: rays on a side of a pixel.
        shapes: the scene.
    """
    origins, directions = rays(np.asarray(pose, np.float32), resolution, samples)
    # Averaged as display values, weighted by coverage: the images are blended with a background in the same way.
    premultiplied = np.zeros((4, directions.shape[1]), np.float32)
    for start in range(0, premultiplied.shape[1], RAYS_AT_ONCE):
        here = slice(start, start + RAYS_AT_ONCE)
        premultiplied[:, here] = color_and_hit(shapes, origins[:, here], directions[:, here])
    pixels = premultiplied.reshape(4, resolution, resolution, samples**2).mean(axis=-1)
    pixels[:3] /= np.maximum(pixels[3], 1e-6)
    return np.moveaxis(np.round(255.0 * pixels), 0, -1).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ cameras


def look_at_origin(azimuth: float, elevation: float) -> NDArray[np.float64]:
    """Camera-to-world matrix [4, 4] of a camera at `CAMERA_RADIUS` that looks at the origin; angles in radians."""
    back = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, CAMERA_RADIUS * back], axis=1)
    return pose


def cameras(split: Literal["train", "val", "test"], count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Camera-to-world matrices [4, 4] of a split: train and val evenly spread over a dome, test on a wavy circle."""
    noise = np.random.default_rng([seed, len(split)])
    start = noise.uniform(0.0, 2.0 * math.pi)
    for i in range(count):
        if split == "test":
            angle = 2.0 * math.pi * i / count
            yield look_at_origin(start + angle, math.radians(30.0 + 15.0 * math.sin(3.0 * angle)))
        else:
            # A spiral from 3 to 80 degrees of elevation with equal area per view; it turns by the golden angle.
            low, high = math.sin(math.radians(3.0)), math.sin(math.radians(80.0))
            height = low + (high - low) * (i + noise.uniform(0.25, 0.75)) / count
            yield look_at_origin(start + i * math.pi * (3.0 - math.sqrt(5.0)), math.asin(height))


# ------------------------------------------------------------------------------------------------------------ writing


def make_scene(
    output: Path,
    resolution: int = 128,
    train: int = 60,
    val: int = 5,
    test: int = 20,
    samples: int = 3,
    seed: int = 0,
) -> None:
    """Write a small posed scene of solid shapes in the format of NeRF's Blender scenes.

    Args:
        output: Folder for the scene; files of an earlier scene are replaced.
        resolution: Height and width of the images in pixels.
        train: Number of training views.
        val: Number of validation views.
        test: Number of test views.
        samples: Rays along each side of a pixel; the time is proportional to their square.
        seed: Random seed of the camera positions.
    """
    counts: dict[Literal["train", "val", "test"], int] = {"train": train, "val": val, "test": test}
    jobs = []
    for split, count in counts.items():
        (output / split).mkdir(parents=True, exist_ok=True)
        poses = list(cameras(split, count, seed))
        frames = [{"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()} for i, pose in enumerate(poses)]
        meta = {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
        (output / f"transforms_{split}.json").write_text(json.dumps(meta, indent=2))
        jobs += [(pose, output / split / f"r_{i}.png") for i, pose in enumerate(poses)]

    def write(job: tuple[NDArray[np.float64], Path]) -> None:
        pose, path = job
        Image.fromarray(draw(pose, resolution, samples), "RGBA").save(path)

    with ThreadPoolExecutor() as pool:
        for _ in track(pool.map(write, jobs), description="Rendering the scene", total=len(jobs)):
            pass


if __name__ == "__main__":
    tyro.cli(make_scene)
