"""The ray-cast images that a splat file is fitted to: the training cameras' views and others between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from ns_support.lenses.lens import Lens, LensType, Window, make_lens
from raygauss_ns.casting import CastSettings, Rays
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.renderer import image_rays, render
from raygauss_ns.splatting.projection import SplatView

_BETWEEN = (0.25, 0.75)
"""Where between two neighbouring cameras another one is placed."""
_NEIGHBORS = 4
"""Number of nearest cameras of which the other of the two is one."""
_FRACTION = 0.2
"""Fraction of the time that is spent on casting new images."""
_MOST_BYTES = 1 << 30
"""Memory for the images; once it is full, new ones replace old ones."""


class Camera(NamedTuple):
    """A camera of which images are cast.

    Attributes:
        lens: a pinhole.
        camera_to_world: [3, 4] float32.
    """

    lens: Lens
    camera_to_world: Tensor


class Target(NamedTuple):
    """A window of a ray-cast image.

    Attributes:
        view: its camera.
        rgb: [rows, columns, 3] before black.
        transmittance: [rows, columns, 1] how much of the background is seen.
    """

    view: SplatView
    rgb: Tensor
    transmittance: Tensor

    def before(self, background: Tensor) -> Tensor:
        """The image [rows, columns, 3] before a background [3]."""
        return self.rgb + self.transmittance * background


class Scene(NamedTuple):
    """What the images show.

    Attributes:
        cloud: the Gaussians, in the colours to be shown.
        settings: how rays are sampled.
        near: distance at which they begin (scene units).
    """

    cloud: GaussianCloud
    settings: CastSettings
    near: float


def pinholes(lens: Lens, camera_to_world: Tensor) -> list[Camera]:
    """Cameras of the same resolution that splats can be projected to: without distortion.

    Args:
        lens: of any kind.
        camera_to_world: [3, 4].

    Returns:
        One, or for a panorama four of 90 degrees, around its vertical axis.
    """
    width, height = int(lens.width), int(lens.height)
    pose = camera_to_world.float()
    if lens.kind in (LensType.PERSPECTIVE, LensType.FISHEYE, LensType.FISHEYE624):
        focal, center = (float(lens.fx), float(lens.fy)), (float(lens.cx), float(lens.cy))
        return [Camera(make_lens(LensType.PERSPECTIVE, focal, center, (width, height)), pose)]
    side = max(height // 2, 1)
    square = make_lens(LensType.PERSPECTIVE, (side / 2, side / 2), (side / 2, side / 2), (side, side))
    turns = Rotation.from_euler("y", [[0.0], [90.0], [180.0], [270.0]], degrees=True).as_matrix()
    turned = [torch.cat([pose[:, :3] @ torch.from_numpy(turn).to(pose), pose[:, 3:]], 1) for turn in turns]
    return [Camera(square, pose) for pose in turned]


def between(first: Camera, second: Camera, fraction: float) -> Camera:
    """A camera on the way from one to another, with the first one's lens."""
    poses = [camera.camera_to_world.double().numpy() for camera in (first, second)]
    turn = Slerp([0.0, 1.0], Rotation.from_matrix(np.stack([pose[:, :3] for pose in poses])))
    pose = np.empty((3, 4))
    pose[:, :3] = turn(fraction).as_matrix()
    pose[:, 3] = (1 - fraction) * poses[0][:, 3] + fraction * poses[1][:, 3]
    return Camera(first.lens, torch.from_numpy(pose).to(first.camera_to_world))


@torch.no_grad()
def cast_target(scene: Scene, camera: Camera, window: Window, device: torch.device) -> Target:
    """Cast a window (first row, first column, rows, columns) of a camera's image."""
    top, left, rows, columns = window
    lens = camera.lens
    focal, center = (float(lens.fx), float(lens.fy)), (float(lens.cx) - left, float(lens.cy) - top)
    part = make_lens(LensType.PERSPECTIVE, focal, center, (columns, rows))
    pose = camera.camera_to_world.to(device)
    rays: Rays = image_rays(part, pose, scene.near)
    out = render(scene.cloud.gaussians(), scene.cloud.color_basis(), rays, scene.settings)
    view = SplatView(pose, focal, center, (columns, rows))
    return Target(view, out.rgb.view(rows, columns, 3), out.transmittance.view(rows, columns, 1))


class Targets:
    """Draws images at random, and casts new ones now and then.

    Args:
        scene: what they show.
        cameras: the training cameras, as pinholes.
        side: of the windows, at most (pixels).
        seed: of what is drawn.
    """

    def __init__(self, scene: Scene, cameras: Sequence[Camera], side: int, seed: int) -> None:
        self._scene, self._cameras, self._side = scene, cameras, side
        self._device = scene.cloud.params["means"].device
        self._random = np.random.default_rng(seed)
        self._order = self._random.permutation(len(cameras))
        self._kept: list[Target] = []
        self._bytes, self._casting, self._begin = 0, 0.0, time.perf_counter()
        self.count = 0
        """Images cast so far."""

    def draw(self) -> Target:
        """An image: a new one, the training cameras' first, or a known one if casting has had its part of the time."""
        spent = time.perf_counter() - self._begin
        if not self._kept or self._casting < _FRACTION * spent:
            return self._new()
        return self._kept[self._random.integers(len(self._kept))]

    def between_cameras(self) -> Camera:
        """A camera between a random one and one of its neighbours."""
        first = self._cameras[self._random.integers(len(self._cameras))]
        centers = torch.stack([camera.camera_to_world[:, 3] for camera in self._cameras])
        apart = torch.linalg.vector_norm(centers - first.camera_to_world[:, 3], dim=-1)
        nearest = torch.argsort(apart)[1 : 1 + _NEIGHBORS]
        if len(nearest) == 0:
            return first
        second = self._cameras[int(nearest[self._random.integers(len(nearest))])]
        return between(first, second, self._random.uniform(*_BETWEEN))

    def cast(self, camera: Camera, whole: bool = False) -> Target:
        """A window of a camera's image at random, or as much from its middle as a window holds."""
        height, width = int(camera.lens.height), int(camera.lens.width)
        rows, columns = min(height, self._side), min(width, self._side)
        free = height - rows, width - columns
        top, left = (value // 2 if whole else int(self._random.integers(value + 1)) for value in free)
        return cast_target(self._scene, camera, (top, left, rows, columns), self._device)

    def _new(self) -> Target:
        begin = time.perf_counter()
        known = self.count < len(self._cameras)
        camera = self._cameras[self._order[self.count]] if known else self.between_cameras()
        target = self.cast(camera)
        size = target.rgb.numel() * 16 // 3
        if self._bytes + size > _MOST_BYTES and self._kept:
            self._kept[self._random.integers(len(self._kept))] = target
        else:
            self._kept.append(target)
            self._bytes += size
        self.count += 1
        self._casting += time.perf_counter() - begin
        return target
