"""The solid shapes of `make_scene.py`: signed distance functions, materials, and the scene.

Notation: points are [3, N] float32, so that each coordinate is contiguous in memory; distances are [N]. z points up.
Colours are linear light.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]


# ---------------------------------------------------------------------------------------------------------- distances


def length(*coordinates: Array) -> Array:
    """Lengths [N] of vectors given by their coordinates [N]; several times as fast as `np.hypot`."""
    return np.sqrt(sum((x * x for x in coordinates[1:]), coordinates[0] * coordinates[0]))


def sphere(p: Array, radius: float) -> Array:
    """Distance to a sphere around the origin."""
    return length(*p) - radius


def box(p: Array, half: ArrayLike, rounding: float) -> Array:
    """Distance to a box with half sizes `half` [3] and rounded edges."""
    q = np.abs(p) - (np.asarray(half, np.float32)[:, None] - rounding)
    return length(*np.maximum(q, 0.0)) + np.minimum(q.max(axis=0), 0.0) - rounding


def torus(p: Array, major: float, minor: float) -> Array:
    """Distance to a torus whose axis is y."""
    return length(length(p[0], p[2]) - major, p[1]) - minor


def cylinder(p: Array, radius: float, half_height: float, rounding: float) -> Array:
    """Distance to a cylinder along z, with rounded edges."""
    out, up = length(p[0], p[1]) - (radius - rounding), np.abs(p[2]) - (half_height - rounding)
    return length(np.maximum(out, 0.0), np.maximum(up, 0.0)) + np.minimum(np.maximum(out, up), 0.0) - rounding


def cone(p: Array, bottom: float, top: float, half_height: float) -> Array:
    """Distance to a truncated cone along z; near its edges a lower bound of the distance."""
    slope = (bottom - top) / (2.0 * half_height)
    side = (length(p[0], p[1]) - (bottom + top) / 2.0 + slope * p[2]) / math.hypot(1.0, slope)
    return np.maximum(side, np.abs(p[2]) - half_height)


def blend(a: Array, b: Array, width: float) -> Array:
    """Smooth union of two shapes, with a fillet of the given width."""
    h = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.minimum(a, b) - h * h * width / 4.0


# ------------------------------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Shape:
    """A solid of one material, in its own coordinates."""

    distance: Callable[[Array], Array]
    """Signed distance [N] at points [3, N], or a lower bound of it."""
    color: Callable[[Array], Array]
    """Linear RGB [3, N] of the surface at points [3, N]."""
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of its origin, in world coordinates."""
    turn: float = 0.0
    """Rotation about z in degrees, anticlockwise from above."""
    tilt: float = 0.0
    """Rotation about its own x axis in degrees, before `turn`."""
    shininess: float = 40.0
    """Blinn-Phong exponent: the larger, the smaller the highlight."""
    gloss: float = 0.35
    """Strength of the highlight."""

    def to_local(self, p: Array) -> Array:
        """World points [3, N] in the shape's coordinates."""
        a, b = math.radians(self.turn), math.radians(self.tilt)
        turn = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
        tilt = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
        local = (turn @ tilt).T.astype(np.float32)
        return local @ (p - np.array(self.position, np.float32)[:, None])


def rgb(code: str) -> Array:
    """Linear RGB [3, 1] of a hexadecimal sRGB colour such as "c94f3d"."""
    encoded = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255.0
    return (encoded**2.2)[:, None]


def choose(where: NDArray[np.bool_], a: Array, b: Array) -> Array:
    """`a` [3, 1] where the condition is true, else `b` [3, 1]."""
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
    """Points [3, N] in the coordinates of a part that is `height` above the shape's origin."""
    return p - np.array([[0.0], [0.0], [height]], np.float32)


def pawn(p: Array) -> Array:
    """Distance to a chess piece: foot, body, collar and head, blended."""
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
