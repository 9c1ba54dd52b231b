"""Lenses: projection of points to pixels, rays of pixels, and the size of a pixel.

Points are in camera space: x to the right, y up, the camera looks along -z. Pixel (row i, column j) is the square
[j, j+1) x [i, i+1) of image coordinates, its centre at (j + 0.5, i + 0.5). With u = (column - cx) / fx,
v = (row - cy) / fy and F the distortion (`ns_support.lenses.distortion`):

    perspective     (u, v) = F(x / -z, -y / -z)
    fisheye         (u, v) = F(theta n), theta the angle to -z, n the direction (x, -y) / |(x, -y)|, theta < pi
    equirectangular longitude pi u to the right of -z, angle pi (v + 1/2) from +y
    stereo panorama the same, seen from the point of the viewing circle (radius: half of `EYES_APART`) to the left or
                    right of the ray's own horizontal direction
    vr180           longitude pi u / 2, angle pi (v + 1/2), from a point half of `EYES_APART` along -x or +x
    orthophoto      (u, v) = (x, -y), all rays along -z

These are nerfstudio's camera models, without the inaccuracies of its `generate_rays` (listed in docs/cameras.md). Only
perspective and fisheye lenses have distortion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ns_support.lenses.distortion import Number, PlaneMap, plane_map, stack_maps, stacked

EYES_APART = 0.064
"""Distance between the eyes of stereo cameras (scene units): nerfstudio takes the scene to be in metres."""


Window = tuple[int, int, int, int]
"""First row, first column, rows, columns."""


class LensType(Enum):
    """How a lens projects; nerfstudio's names."""

    PERSPECTIVE = "perspective"
    FISHEYE = "fisheye"
    EQUIRECTANGULAR = "equirectangular"
    OMNIDIRECTIONALSTEREO_L = "stereo panorama, left eye"
    OMNIDIRECTIONALSTEREO_R = "stereo panorama, right eye"
    VR180_L = "vr180, left eye"
    VR180_R = "vr180, right eye"
    ORTHOPHOTO = "orthophoto"
    FISHEYE624 = "fisheye624"


_PLANAR = {LensType.PERSPECTIVE, LensType.FISHEYE, LensType.FISHEYE624}
_STEREO = {LensType.OMNIDIRECTIONALSTEREO_L: -0.5 * EYES_APART, LensType.OMNIDIRECTIONALSTEREO_R: 0.5 * EYES_APART}
_VR180 = {LensType.VR180_L: -0.5 * EYES_APART, LensType.VR180_R: 0.5 * EYES_APART}


class Projection(NamedTuple):
    """Where N points are in an image.

    Attributes:
        column: [N] image coordinate (pixels).
        row: [N] image coordinate (pixels).
        seen: [N] bool, whether the image shows the point; if not, the other two are meaningless.
    """

    column: Tensor
    row: Tensor
    seen: Tensor


class LocalRays(NamedTuple):
    """Rays in camera space, float64; or in the scene (`in_world`).

    Attributes:
        origins: [*, 3]; [3] if all rays start there; or None if they start at the camera's centre.
        directions: [*, 3] of unit length.
        exist: [*] bool, which pixels have a ray, or None if all do. The directions of the others are (0, 0, -1).
    """

    origins: Tensor | None
    directions: Tensor
    exist: Tensor | None


class Lens(NamedTuple):
    """A camera without its pose.

    Attributes:
        kind: how it projects.
        fx: pixels per unit of u.
        fy: pixels per unit of v.
        cx: column of the principal point (pixels).
        cy: row of the principal point (pixels).
        width: of the image (pixels).
        height: of the image (pixels).
        distortion: maps of the plane, applied in order; none for lenses other than perspective and fisheye.
    """

    kind: LensType
    fx: Number
    fy: Number
    cx: Number
    cy: Number
    width: Number
    height: Number
    distortion: tuple[PlaneMap, ...] = ()

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Lens:
        """The same lens with its tensors, if it has any, changed."""
        fx, fy, cx, cy, width, height = (change(n) if isinstance(n, Tensor) else n for n in self._numbers)
        steps = tuple(step.with_tensors(change) for step in self.distortion)
        return Lens(self.kind, fx, fy, cx, cy, width, height, steps)

    @property
    def _numbers(self) -> tuple[Number, ...]:
        return self.fx, self.fy, self.cx, self.cy, self.width, self.height

    @property
    def is_pinhole(self) -> bool:
        """Whether this is a perspective lens without distortion."""
        return self.kind is LensType.PERSPECTIVE and all(step.is_identity for step in self.distortion)

    @property
    def same_size_at_any_distance(self) -> bool:
        """Whether the size of an object in pixels does not depend on its distance."""
        return self.kind is LensType.ORTHOPHOTO

    @property
    def has_one_center(self) -> bool:
        """Whether all rays start at the camera's centre."""
        return self.kind in _PLANAR or self.kind is LensType.EQUIRECTANGULAR

    def rays(self, column: Tensor, row: Tensor) -> LocalRays:
        """The rays through image coordinates.

        Args:
            column: float64.
            row: float64. The two shapes broadcast to [*]: [1, W] and [H, 1] give a whole image.
        """
        u, v = (column - self.cx) / self.fx, (row - self.cy) / self.fy
        shape, zero = torch.broadcast_shapes(u.shape, v.shape), u.new_zeros(())
        if self.kind in _PLANAR:
            return self._planar_rays(u, v)
        if self.kind is LensType.ORTHOPHOTO:
            return LocalRays(_vectors(shape, u, -v, zero), _vectors(shape, zero, zero, zero - 1), None)
        longitude = math.pi * (0.5 * u if self.kind in _VR180 else u)
        angle = math.pi * (v + 0.5)
        sine, cosine, level = torch.sin(longitude), torch.cos(longitude), torch.sin(angle)
        directions = _vectors(shape, sine * level, torch.cos(angle), -cosine * level)
        origins: Tensor | None = None
        if self.kind in _STEREO:
            offset = _STEREO[self.kind]
            origins = _vectors(shape, offset * cosine, zero, offset * sine)
        elif self.kind in _VR180:
            origins = _vectors(shape, zero + _VR180[self.kind], zero, zero)
        return LocalRays(origins, directions, None)

    def _planar_rays(self, u: Tensor, v: Tensor) -> LocalRays:
        shape = torch.broadcast_shapes(u.shape, v.shape)
        if self.is_pinhole:
            plane, exist = torch.stack(torch.broadcast_tensors(u, v), dim=-1), None
        else:
            plane, exist = self._undistorted(torch.stack(torch.broadcast_tensors(u, v), dim=-1))
        x, y = plane.unbind(-1)
        if self.kind is LensType.PERSPECTIVE:
            directions = _vectors(shape, x, -y, u.new_full((), -1.0))
            return LocalRays(None, directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True), exist)
        theta = torch.hypot(x, y)
        # sin(theta) / theta, which is torch.sinc of theta / pi, and 1 at the centre.
        slope = torch.sinc(theta / math.pi)
        return LocalRays(None, _vectors(shape, slope * x, -slope * y, -torch.cos(theta)), exist)

    def _undistorted(self, plane: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points [*, 2] before the distortion, and which of them exist, or None for all."""
        exist = torch.ones(plane.shape[:-1], dtype=torch.bool, device=plane.device)
        for step in reversed(self.distortion):
            plane, found = step.inverse(plane)
            exist &= found
        if bool(exist.all()):
            return plane, None
        return torch.where(exist[..., None], plane, 0.0), exist

    def project(self, points: Tensor) -> Projection:
        """Project points [N, 3] of camera space to the image.

        If a panorama is wider than a full turn and shows a point several times, only one of the positions is returned.
        """
        if self.kind in _PLANAR:
            plane, seen = self._on_plane(points)
            for step in self.distortion:
                seen &= step.contains(plane)
                plane = step(plane)
            u, v = plane.unbind(-1)
        elif self.kind is LensType.ORTHOPHOTO:
            u, v, seen = points[:, 0], -points[:, 1], points[:, 2] < 0
        else:
            return self._on_panorama(points)
        return self._in_image(self.cx + self.fx * u, self.cy + self.fy * v, seen)

    def pixel_size(self, points: Tensor) -> Tensor:
        """[N] distance that points [N, 3] of camera space must move for their image to move by a pixel (scene units).

        Measured along the image axis with the finer pixels, parallel to the image plane of a perspective lens (z / f
        for a pinhole), and on the sphere about other lenses. It is not reduced where the columns of a panorama crowd at
        its poles, or the pixels of a fisheye along its rim: along the other axis they are as coarse as elsewhere.
        """
        if self.is_pinhole:
            return -points[:, 2] / max(self.fx, self.fy)
        if self.kind in _PLANAR:
            plane, _ = self._on_plane(points)
            jacobian = torch.diag_embed(torch.ones_like(plane))
            for step in self.distortion:
                jacobian = step.jacobian(plane) @ jacobian
                plane = step(plane)
            focal = torch.tensor([[self.fx], [self.fy]], dtype=points.dtype, device=points.device)
            depth = -points[:, 2] if self.kind is LensType.PERSPECTIVE else torch.linalg.vector_norm(points, dim=-1)
            return depth / _largest_stretch(focal * jacobian)
        if self.kind is LensType.ORTHOPHOTO:
            return torch.ones_like(points[:, 0]) / max(self.fx, self.fy)
        pixels_per_turn = 2 * max(2 * self.fx if self.kind in _VR180 else self.fx, self.fy)
        return self._from_eye(points)[1] * (2 * math.pi / pixels_per_turn)

    def _on_plane(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points [N, 2] of the plane before distortion, and which of them can be projected at all."""
        x, y, depth = points[:, 0], -points[:, 1], -points[:, 2]
        flat = torch.stack([x, y], dim=-1)
        if self.kind is LensType.PERSPECTIVE:
            return flat / depth[:, None], depth > 0
        across = torch.hypot(x, y)
        theta = torch.atan2(across, depth)
        factor = torch.where(across > 0, theta / across, torch.where(depth > 0, 1.0 / depth, 0.0))
        return flat * factor[:, None], (across > 0) | (depth > 0)

    def _on_panorama(self, points: Tensor) -> Projection:
        longitude, distance, points = self._from_eye(points)
        half_turn = 2 * self.fx if self.kind in _VR180 else self.fx
        x, y, z = points.unbind(-1)
        angle = torch.atan2(torch.hypot(x, z), y)
        column = torch.remainder(self.cx + half_turn * longitude / math.pi, 2 * half_turn)
        return self._in_image(column, self.cy + self.fy * (angle / math.pi - 0.5), distance > 0)

    def _from_eye(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Longitude [N] of the rays to points, their length [N], and the points relative to the rays' origins [N, 3].

        The length is 0 if no ray leads to a point: within the viewing circle of a stereo panorama.
        """
        if self.kind in _VR180:
            points = points - points.new_tensor([_VR180[self.kind], 0.0, 0.0])
        x, y, z = points.unbind(-1)
        longitude = torch.atan2(x, -z)
        if self.kind in _STEREO:
            offset = _STEREO[self.kind]
            ahead = (x * x + z * z - offset * offset).clamp_min(0.0).sqrt()
            longitude = longitude - torch.atan2(torch.full_like(ahead, offset), ahead)
            points = torch.stack([torch.sin(longitude) * ahead, y, -torch.cos(longitude) * ahead], dim=-1)
            return longitude, torch.where(ahead > 0, torch.linalg.vector_norm(points, dim=-1), 0.0), points
        return longitude, torch.linalg.vector_norm(points, dim=-1), points

    def _in_image(self, column: Tensor, row: Tensor, possible: Tensor) -> Projection:
        within = (column >= 0) & (column < self.width) & (row >= 0) & (row < self.height)
        return Projection(column, row, possible & within)


def make_lens(
    kind: LensType,
    focal: tuple[float, float],
    center: tuple[float, float],
    size: tuple[int, int],
    coefficients: Sequence[float] = (),
) -> Lens:
    """A lens with nerfstudio's parameters.

    Args:
        kind: how it projects.
        focal: fx, fy (pixels).
        center: cx, cy (pixels).
        size: width, height (pixels).
        coefficients: of the distortion: k1, k2, k3, k4, p1, p2; for fisheye624 k0, ..., k5, p0, p1, s0, s1, s2, s3;
            none: no distortion. Ignored for lenses other than perspective and fisheye.

    Raises:
        ValueError: a focal length is not positive, or the coefficients are not finite or have the wrong number.
    """
    if not all(0 < f < math.inf for f in focal):
        raise ValueError(f"focal lengths must be positive and finite, got fx, fy = {focal}")
    expected = 12 if kind is LensType.FISHEYE624 else 6
    if kind in _PLANAR and len(coefficients) not in (0, expected):
        raise ValueError(f"a {kind.value} lens has {expected} distortion coefficients, got {len(coefficients)}")
    distortion: tuple[PlaneMap, ...] = ()
    if kind is LensType.FISHEYE624:
        radial, (p0, p1), prism = coefficients[:6], coefficients[6:8] or (0.0, 0.0), coefficients[8:] or (0.0,) * 4
        s0, s1, s2, s3 = prism
        # OpenCV's p2 belongs to x.
        distortion = (plane_map(tuple(radial), limit=math.pi), plane_map((), (p1, p0), (s0, s1, s2, s3)))
    elif kind is LensType.FISHEYE or (kind is LensType.PERSPECTIVE and any(coefficients)):
        p1, p2 = coefficients[4:] or (0.0, 0.0)
        limit = math.pi if kind is LensType.FISHEYE else math.inf
        distortion = (plane_map(tuple(coefficients[:4]), (p1, p2), limit=limit),)
    return Lens(kind, *focal, *center, *size, distortion)


def pixel_centers(window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
    """Columns [columns] and rows [rows, 1] of the pixel centres, float64."""
    top, left, rows, columns = window
    column = torch.arange(left, left + columns, dtype=torch.float64, device=device) + 0.5
    return column, torch.arange(top, top + rows, dtype=torch.float64, device=device)[:, None] + 0.5


def in_world(local: LocalRays, pose: Tensor) -> LocalRays:
    """Transform rays from camera space to the scene.

    Args:
        local: rays of shape [*].
        pose: camera to world: [3, 4], or [*, 3, 4] one per ray.

    Returns:
        Origins and directions [*, 3] of the pose's type, normalised before they are rounded to it.
    """
    rotation = pose[..., :3].double()
    directions = torch.nn.functional.normalize(_rotated(rotation, local.directions), dim=-1)
    origins = pose[..., 3].expand(directions.shape)
    if local.origins is not None:
        origins = (_rotated(rotation, local.origins) + pose[..., 3]).to(pose).expand(directions.shape)
    return LocalRays(origins, directions.to(pose), local.exist)


def _rotated(rotation: Tensor, vectors: Tensor) -> Tensor:
    if rotation.ndim == 2:
        return vectors @ rotation.T
    return (rotation @ vectors[..., None])[..., 0]


def stack_lenses(lenses: Sequence[Lens]) -> Lens:
    """One lens for image coordinates of different cameras; parameters that all lenses share stay numbers.

    Args:
        lenses: of one kind and with the same number of distortion maps.

    Returns:
        A lens whose other parameters are float64 tensors [number of lenses].
    """
    fx, fy, cx, cy, width, height = (
        stacked(list(values)) for values in zip(*(lens._numbers for lens in lenses), strict=True)
    )
    steps = tuple(stack_maps(list(maps)) for maps in zip(*(lens.distortion for lens in lenses), strict=True))
    return Lens(lenses[0].kind, fx, fy, cx, cy, width, height, steps)


def _vectors(shape: torch.Size, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """[*shape, 3] from components that broadcast to the shape."""
    return torch.stack([x.expand(shape), y.expand(shape), z.expand(shape)], dim=-1)


def _largest_stretch(matrices: Tensor) -> Tensor:
    """[N] largest singular values of matrices [N, 2, 2]."""
    (a, b), (c, d) = matrices.permute(1, 2, 0)
    return 0.5 * (torch.hypot(a + d, b - c) + torch.hypot(a - d, b + c))
