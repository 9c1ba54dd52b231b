"""Make a small posed scene from nothing: images, cameras and all, in the format of NeRF's Blender scenes.

A few solid shapes on a chequered dish, drawn by sphere tracing their signed distances: soft shadows, ambient occlusion,
and highlights that move with the viewer. The background is transparent. The same arguments give the same files.

    python examples/make_scene.py --output scene
    ns-train raygauss --data scene blender-data

Notation: points and directions are [3, N] float32, so that each coordinate lies contiguously in memory; distances are
[N]. z points up. Colours are linear light until `encode`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from rich.progress import track

Array = NDArray[np.float32]

CAMERA_ANGLE_X = 0.6911
"""Horizontal field of view in radians, as in NeRF's Blender scenes."""
CAMERA_RADIUS = 4.0
"""Distance of every camera from the origin."""
BOUND = 1.25
"""Radius of the sphere around the origin that holds all shapes: rays that miss it are not traced."""
RAYS_AT_ONCE = 2**18
"""Rays that are traced together: one image of the default size, so that larger ones need no more memory."""


# ---------------------------------------------------------------------------------------------------------- distances


def length(*coordinates: Array) -> Array:
    """Lengths [N] of vectors given by their coordinates [N]; several times as fast as `np.hypot`."""
    return np.sqrt(sum((x * x for x in coordinates[1:]), coordinates[0] * coordinates[0]))


def sphere(p: Array, radius: float) -> Array:
    """Distance to a sphere around the origin."""
    return length(*p) - radius


def box(p: Array, half: ArrayLike, rounding: float) -> Array:
    """Distance to a box with the half sizes `half` [3], its edges rounded inwards."""
    q = np.abs(p) - (np.asarray(half, np.float32)[:, None] - rounding)
    return length(*np.maximum(q, 0.0)) + np.minimum(q.max(axis=0), 0.0) - rounding


def torus(p: Array, major: float, minor: float) -> Array:
    """Distance to a torus around the y axis: a wheel that rolls along x."""
    return length(length(p[0], p[2]) - major, p[1]) - minor


def cylinder(p: Array, radius: float, half_height: float, rounding: float) -> Array:
    """Distance to an upright cylinder, its edges rounded inwards."""
    out, up = length(p[0], p[1]) - (radius - rounding), np.abs(p[2]) - (half_height - rounding)
    return length(np.maximum(out, 0.0), np.maximum(up, 0.0)) + np.minimum(np.maximum(out, up), 0.0) - rounding


def cone(p: Array, bottom: float, top: float, half_height: float) -> Array:
    """Distance to an upright cone cut off at the radius `top`, a little less than the true one near its edges."""
    slope = (bottom - top) / (2.0 * half_height)
    side = (length(p[0], p[1]) - (bottom + top) / 2.0 + slope * p[2]) / math.hypot(1.0, slope)
    return np.maximum(side, np.abs(p[2]) - half_height)


def blend(a: Array, b: Array, width: float) -> Array:
    """Union of two shapes with a fillet of the given width where they meet."""
    h = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.minimum(a, b) - h * h * width / 4.0


# ------------------------------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Shape:
    """A solid of one material, described around its own origin."""

    distance: Callable[[Array], Array]
    """Signed distance [N] at points [3, N]; may fall short of the true one, never exceed it."""
    color: Callable[[Array], Array]
    """Linear RGB [3, N] of the surface at points [3, N]."""
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where its origin stands."""
    turn: float = 0.0
    """Rotation about z in degrees, anticlockwise from above."""
    tilt: float = 0.0
    """Rotation about its own x axis in degrees, before `turn`."""
    shininess: float = 40.0
    """Blinn-Phong exponent: the larger, the smaller the highlight."""
    gloss: float = 0.35
    """Strength of the highlight."""

    def to_local(self, p: Array) -> Array:
        """World points [3, N] as the shape's own functions take them."""
        a, b = math.radians(self.turn), math.radians(self.tilt)
        turn = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
        tilt = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
        local = (turn @ tilt).T.astype(np.float32)
        return local @ (p - np.array(self.position, np.float32)[:, None])


def rgb(code: str) -> Array:
    """Linear RGB [3, 1] of a colour written as on the web, "c94f3d"."""
    encoded = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255.0
    return (encoded**2.2)[:, None]


def choose(where: NDArray[np.bool_], a: Array, b: Array) -> Array:
    """`a` [3, 1] where true, else `b` [3, 1]."""
    return np.where(where, a, b)


CREAM, SLATE, CORAL = rgb("f4ead6"), rgb("2f4858"), rgb("e4572e")
GOLD, TEAL, PLUM = rgb("f2b134"), rgb("1b998b"), rgb("8e4a8c")
FLOOR = -0.42
"""Height of the dish on which the shapes stand."""


RING = 0.36
"""Radius of the ring's centre line."""


def dish_color(p: Array) -> Array:
    """A chequered top with a golden rim."""
    checker = (np.floor(p[0] / 0.22) + np.floor(p[1] / 0.22)) % 2 == 0
    return np.where(length(p[0], p[1]) > 0.9, GOLD, choose(checker, CREAM, SLATE))


def ball_color(p: Array) -> Array:
    """Belts around a tilted axis."""
    return choose(np.sin(19.0 * (0.8 * p[2] + 0.6 * p[0])) > 0.55, CREAM, CORAL)


def ring_color(p: Array) -> Array:
    """Stripes that wind around the ring."""
    around, along = np.arctan2(p[1], length(p[0], p[2]) - RING), np.arctan2(p[2], p[0])
    return choose(np.sin(8.0 * along + around) > 0.6, SLATE, GOLD)


def cube_color(p: Array) -> Array:
    """Round dots in rows on every face."""
    from_dot = p - 0.2 * np.round(p / 0.2)
    face = np.abs(p).argmax(axis=0)
    in_face = np.where(np.arange(3)[:, None] == face, 0.0, from_dot)
    return choose(length(*in_face) < 0.055, CREAM, TEAL)


def raised(p: Array, height: float) -> Array:
    """Points [3, N] as a part sees them that stands `height` above the shape's origin."""
    return p - np.array([[0.0], [0.0], [height]], np.float32)


def pawn(p: Array) -> Array:
    """A chess piece: foot, body and head, run together."""
    foot = cylinder(raised(p, 0.06), 0.3, 0.06, 0.05)
    body = cone(raised(p, 0.4), 0.25, 0.09, 0.34)
    collar = cylinder(raised(p, 0.72), 0.18, 0.03, 0.025)
    head = sphere(raised(p, 0.9), 0.18)
    return blend(blend(foot, body, 0.12), blend(collar, head, 0.04), 0.08)


def pawn_color(p: Array) -> Array:
    """Plum with a pale collar."""
    return choose(np.abs(p[2] - 0.72) < 0.04, CREAM, PLUM)


SCENE: tuple[Shape, ...] = (
    Shape(lambda p: cylinder(p, 0.98, 0.07, 0.05), dish_color, (0.0, 0.0, FLOOR - 0.07), turn=20.0, gloss=0.15),
    Shape(lambda p: sphere(p, 0.37), ball_color, (-0.4, 0.4, FLOOR + 0.37), shininess=60.0, gloss=0.6),
    Shape(lambda p: torus(p, RING, 0.13), ring_color, (0.44, 0.4, FLOOR + RING + 0.13), turn=-35.0, gloss=0.5),
    Shape(lambda p: box(p, [0.29, 0.29, 0.29], 0.05), cube_color, (0.42, -0.42, FLOOR + 0.29), turn=28.0),
    Shape(pawn, pawn_color, (-0.4, -0.42, FLOOR), shininess=50.0, gloss=0.5),
)


# ------------------------------------------------------------------------------------------------------------ drawing


def unit(v: Array) -> Array:
    """Vectors [3, N] at length 1."""
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
    t, end = middle - half, middle + half
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
    """Unit surface normals [3, N], by differences over the corners of a tetrahedron."""
    corners = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32)[..., None]
    return unit(sum((corner * distance_to_all(shapes, p + 1e-3 * corner) for corner in corners), np.zeros_like(p)))


def sunlit(shapes: Sequence[Shape], p: Array) -> Array:
    """How much of the sun [N] a point sees, in [0, 1]; a shadow's edge widens with the distance to what casts it."""
    light, t = np.ones(p.shape[1], np.float32), np.full(p.shape[1], 0.02, np.float32)
    active = np.arange(p.shape[1])
    for _ in range(32):
        gap = distance_to_all(shapes, p[:, active] + t[active] * SUN)
        light[active] = np.minimum(light[active], np.clip(0.5 + 7.0 * gap / t[active], 0.0, 1.0))
        t[active] += np.clip(gap, 0.015, 0.15)
        active = active[(light[active] > 0.0) & (t[active] < 1.8)]
    return light * light * (3.0 - 2.0 * light)


def openness(shapes: Sequence[Shape], p: Array, normal: Array) -> Array:
    """How much of the sky [N] a point sees, in [0, 1], from the room there is above it."""
    closed = sum(
        (
            0.6**i * np.maximum(h - distance_to_all(shapes, p + h * normal), 0.0)
            for i, h in enumerate((0.03, 0.09, 0.2, 0.35))
        ),
        np.zeros(p.shape[1], np.float32),
    )
    return np.clip(1.0 - 2.2 * closed, 0.0, 1.0)


def shade(shapes: Sequence[Shape], p: Array, directions: Array) -> Array:
    """Linear RGB [3, N] that leaves the surface points [3, N] against the rays' directions [3, N]."""
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
    """Linear light to display values in [0, 1]: bright values roll off instead of clipping."""
    rolled = np.where(linear > 0.6, 0.6 + 0.4 * np.tanh((linear - 0.6) / 0.4), linear)
    return np.clip(rolled, 0.0, 1.0) ** (1.0 / 2.2)


def color_and_hit(shapes: Sequence[Shape], origins: Array, directions: Array) -> Array:
    """Display RGB and 1 [4, N] of rays that meet a shape, 0 of those that don't."""
    t = trace(shapes, origins, directions)
    hit = np.isfinite(t)
    found = np.zeros((4, t.size), np.float32)
    towards = directions[:, hit]
    found[:3, hit] = encode(shade(shapes, origins[:, hit] + t[hit] * towards, towards))
    found[3] = hit
    return found


def rays(pose: Array, resolution: int, samples: int) -> tuple[Array, Array]:
    """Origins and unit directions [3, N] through a square image, `samples` x `samples` to a pixel.

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
    """Image [H, W, 4] of the shapes: RGB and straight (not premultiplied) alpha.

    Args:
        pose: [4, 4] camera to world.
        resolution: pixels on a side.
        samples: rays on a side of a pixel.
        shapes: what to draw.
    """
    origins, directions = rays(np.asarray(pose, np.float32), resolution, samples)
    # Averaged in display values and weighted by coverage: that is how the images are blended with a background.
    premultiplied = np.zeros((4, directions.shape[1]), np.float32)
    for start in range(0, premultiplied.shape[1], RAYS_AT_ONCE):
        here = slice(start, start + RAYS_AT_ONCE)
        premultiplied[:, here] = color_and_hit(shapes, origins[:, here], directions[:, here])
    pixels = premultiplied.reshape(4, resolution, resolution, samples**2).mean(axis=-1)
    pixels[:3] /= np.maximum(pixels[3], 1e-6)
    return np.moveaxis(np.round(255.0 * pixels), 0, -1).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ cameras


def look_at_origin(azimuth: float, elevation: float) -> NDArray[np.float64]:
    """Pose [4, 4], camera to world, of a camera at `CAMERA_RADIUS` that looks at the origin; angles in radians."""
    back = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, CAMERA_RADIUS * back], axis=1)
    return pose


def cameras(split: Literal["train", "val", "test"], count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Poses of a split: training and validation views spread evenly over a dome, test views on a wavy circle."""
    noise = np.random.default_rng([seed, len(split)])
    start = noise.uniform(0.0, 2.0 * math.pi)
    for i in range(count):
        if split == "test":
            angle = 2.0 * math.pi * i / count
            yield look_at_origin(start + angle, math.radians(30.0 + 15.0 * math.sin(3.0 * angle)))
        else:
            # A spiral of equal areas between 3 and 80 degrees above the horizon; turns by the golden angle.
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
        output: Folder to write to; files of an earlier scene are replaced.
        resolution: Height and width of the images in pixels.
        train: Number of training views.
        val: Number of validation views.
        test: Number of test views.
        samples: Rays on a side of each pixel; the edges get smoother with their square, and the time longer.
        seed: Where the cameras stand.
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
        for _ in track(pool.map(write, jobs), description="Drawing the scene", total=len(jobs)):
            pass


if __name__ == "__main__":
    tyro.cli(make_scene)
