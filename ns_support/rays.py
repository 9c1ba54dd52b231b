"""Exact rays of all nerfstudio cameras, for whole images, crops and batches of pixels.

docs/cameras.md lists the inaccuracies of nerfstudio's `Cameras.generate_rays`, which is therefore not used.
"""

from __future__ import annotations

from copy import copy

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.ray_generators import RayGenerator
from nerfstudio.utils.math import intersect_obb
from torch import Tensor

from ns_support.data.ray_table import RayTable
from ns_support.errors import UserError
from ns_support.kernels.constants import constant
from ns_support.lenses.lens import (
    Lens,
    LensType,
    LocalRays,
    Window,
    in_world,
    make_lens,
    pixel_centers,
    stack_lenses,
)
from ns_support.lenses.thin_lens import LensPoint, through_lens

LENS = "lens"
"""Name, in a camera's metadata, of its `Lens`: reading it off a camera on a GPU would make the host wait."""
LENS_POINT = "lens_point"
"""Name, in a camera's metadata, of the `LensPoint` that its rays pass through; without one, they are a pinhole's."""
_MOST_KEPT = 1 << 22
"""Maximum number of pixels of an image whose rays are cached (24 bytes each)."""


def camera_lenses(cameras: Cameras) -> list[Lens]:
    """The lenses of C cameras.

    Raises:
        UserError: a camera's parameters are invalid.
    """
    fields = (cameras.camera_type, cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.width, cameras.height)
    columns = [field.reshape(-1).tolist() for field in fields]
    coefficients: list[list[float]] = [[]] * len(columns[0])
    if cameras.distortion_params is not None:
        coefficients = cameras.distortion_params.reshape(len(columns[0]), -1).tolist()
    made: dict[tuple[float, ...], Lens] = {}
    lenses: list[Lens] = []
    for (number, fx, fy, cx, cy, width, height), k in zip(zip(*columns, strict=True), coefficients, strict=True):
        key = (number, fx, fy, cx, cy, width, height, *k)
        if key not in made:
            kind = LensType[CameraType(number).name]
            try:
                made[key] = make_lens(kind, (fx, fy), (cx, cy), (width, height), k)
            except ValueError as error:
                raise UserError(f"Camera {len(lenses)} can't be used: {error}.") from error
        lenses.append(made[key])
    return lenses


def lens_of(camera: Cameras) -> Lens:
    """The lens of one camera, which the host may know although the camera is on a GPU (`LENS`).

    Raises:
        UserError: the camera's parameters are invalid.
    """
    known = (camera.metadata or {}).get(LENS)
    return camera_lenses(camera)[0] if known is None else known


def at_lens_point(camera: Cameras, point: LensPoint) -> Cameras:
    """The same camera, whose rays (`camera_rays`) pass through a point of a lens of finite aperture."""
    moved = copy(camera)
    moved.metadata = {**(camera.metadata or {}), LENS_POINT: point}
    return moved


def camera_extent(cameras: Cameras) -> float:
    """1.1 times the largest distance of a camera from the cameras' mean (scene units); 1 for fewer than two."""
    centers = cameras.camera_to_worlds[..., :3, 3].reshape(-1, 3)
    if len(centers) == 0:
        return 1.0
    extent = 1.1 * float(torch.linalg.vector_norm(centers - centers.mean(0), dim=-1).max())
    return extent if extent > 0 else 1.0


def downscaled(cameras: Cameras, factor: int) -> Cameras:
    """The cameras of images of which each pixel is the average of factor x factor pixels (`downscaled_image`).

    Rows and columns that fill no such block are cut off, so that the pixels that are left are exactly where they were.
    """
    if factor == 1:
        return cameras
    smaller = copy(cameras)
    if LENS in (cameras.metadata or {}):
        smaller.metadata = {name: value for name, value in cameras.metadata.items() if name != LENS}
    for name in ("fx", "fy", "cx", "cy"):
        setattr(smaller, name, getattr(cameras, name) / factor)
    smaller.width, smaller.height = cameras.width // factor, cameras.height // factor
    return smaller


def camera_rays(camera: Cameras, window: Window | None = None, obb_box: OrientedBox | None = None) -> RayBundle:
    """Rays [rows, columns] through the centres of the pixels of a crop, without pixel areas.

    Directions are computed in float64 and then rounded, except for pinholes, where float32 is faster and as accurate.
    Pixels without a ray (docs/cameras.md) get one that ends where it begins.

    Args:
        camera: a single camera, of shape [] or [1] and any dtype; from `at_lens_point` for rays through a lens.
        window: the crop: first row, first column, rows, columns; None: the whole image.
        obb_box: a box that the rays are clipped to.

    Returns:
        A bundle; with nears and fars if there is a box or a pixel without a ray, for which both are 0.

    Raises:
        UserError: the camera's parameters are invalid.
        ValueError: `camera` is not a single camera.
    """
    if camera.camera_to_worlds.numel() != 12:
        raise ValueError(f"camera must be one camera, got some of shape {list(camera.camera_to_worlds.shape[:-2])}")
    lens, point = lens_of(camera), (camera.metadata or {}).get(LENS_POINT)
    top, left, rows, columns = window or (0, 0, int(lens.height), int(lens.width))
    pose = camera.camera_to_worlds.reshape(3, 4).float()
    if lens.is_pinhole and point is None and pose.is_cuda:
        directions = _LATEST_PINHOLE.directions(lens, (top, left, rows, columns), pose.device) @ pose[:, :3].T
        one = constant(1.0, pose.device).expand(rows, columns, 1)
        bundle = RayBundle(pose[:, 3].expand_as(directions), directions, one)
    elif lens.is_pinhole and point is None:
        column, row = pixel_centers((top, left, rows, columns), pose.device)
        x = ((column - lens.cx) / lens.fx).float().expand(rows, -1)
        y = ((row - lens.cy) / lens.fy).float().expand(-1, columns)
        directions = torch.stack([x, -y, -torch.ones_like(x)], -1) @ pose[:, :3].T
        directions = torch.nn.functional.normalize(directions, dim=-1)
        bundle = RayBundle(pose[:, 3].expand_as(directions), directions, torch.ones_like(directions[..., :1]))
    else:
        local = _LATEST.rays(lens, (top, left, rows, columns), pose.device)
        if point is not None:
            local = through_lens(lens.kind, local, point)
        bundle = _bundle(in_world(local, pose))
    if obb_box is not None:
        _cut(bundle, obb_box)
    return bundle


class ExactRayGenerator(RayGenerator):
    """nerfstudio's ray generator with exact rays, and without pixel areas.

    Args:
        cameras: C cameras of any types.

    Raises:
        UserError: a camera's parameters are invalid.
    """

    def __init__(self, cameras: Cameras) -> None:
        super().__init__(cameras)
        lenses = camera_lenses(cameras)
        self._of_cameras = lenses
        # Made when rays are first asked for: those to evaluate seldom are.
        self._table: RayTable | None = None
        self._may_have_table = cameras.camera_to_worlds.is_cuda
        # Lenses that differ in more than numbers can't be computed together.
        groups: dict[tuple[LensType, int], list[int]] = {}
        for index, lens in enumerate(lenses):
            groups.setdefault((lens.kind, len(lens.distortion)), []).append(index)
        device = cameras.camera_to_worlds.device
        self._group, self._place = torch.zeros(2, len(lenses), dtype=torch.int64, device=device)
        self._lenses = []
        for number, members in enumerate(groups.values()):
            self._group[members] = number
            self._place[members] = torch.arange(len(members), device=device)
            self._lenses.append(stack_lenses([lenses[i] for i in members]).with_tensors(lambda value: value.to(device)))

    def forward(self, ray_indices: Tensor) -> RayBundle:
        """Rays through the centres of pixels.

        Args:
            ray_indices: [N, 3] int64: camera, row, column.

        Returns:
            N rays, with nears and fars if any of the pixels has no ray.
        """
        camera, row, column = ray_indices.to(self._group.device).unbind(-1)
        if self._may_have_table and self._table is None:
            self._may_have_table = RayTable.fits(self.cameras, self._of_cameras)
            self._table = RayTable(self.cameras, self._of_cameras) if self._may_have_table else None
        if self._table is not None:
            bundle: RayBundle = self._table.rays(camera, row, column)
            bundle.times = None if self.cameras.times is None else self.cameras.times.reshape(-1, 1)[camera]
            return bundle
        row, column = row + torch.tensor(0.5, dtype=torch.float64), column + torch.tensor(0.5, dtype=torch.float64)
        poses = self.cameras.camera_to_worlds.reshape(-1, 3, 4)[camera].float()
        if len(self._lenses) == 1:
            local = self._local_rays(0, camera, column, row)
        else:
            local = self._mixed_rays(camera, column, row)
        bundle = _bundle(in_world(local, poses))
        bundle.camera_indices = camera[:, None]
        bundle.times = None if self.cameras.times is None else self.cameras.times.reshape(-1, 1)[camera]
        return bundle

    def _local_rays(self, group: int, camera: Tensor, column: Tensor, row: Tensor) -> LocalRays:
        place = self._place[camera]
        return self._lenses[group].with_tensors(lambda value: value[place]).rays(column, row)

    def _mixed_rays(self, camera: Tensor, column: Tensor, row: Tensor) -> LocalRays:
        origins = torch.zeros(len(camera), 3, dtype=torch.float64, device=camera.device)
        directions, exist = torch.zeros_like(origins), torch.ones_like(camera, dtype=torch.bool)
        for group in range(len(self._lenses)):
            own = torch.nonzero(self._group[camera] == group)[:, 0]
            part = self._local_rays(group, camera[own], column[own], row[own])
            directions[own] = part.directions
            if part.origins is not None:
                origins[own] = part.origins
            if part.exist is not None:
                exist[own] = part.exist
        return LocalRays(origins, directions, exist)


class _LatestLens:
    """A cache of the latest distorted lens's rays, since usually all images of a scene have the same lens.

    The rays of a whole image are cached once the same lens is used twice in a row. A scene with a different lens for
    each image therefore only pays for the crops that it requests.
    """

    def __init__(self) -> None:
        self._kept: tuple[Lens, torch.device, LocalRays | None] | None = None

    def rays(self, lens: Lens, window: Window, device: torch.device) -> LocalRays:
        """Rays [rows, columns] of a crop."""
        if not lens.distortion or lens.width * lens.height > _MOST_KEPT:
            return lens.rays(*pixel_centers(window, device))
        kept = self._kept  # read once: another thread may replace it
        if kept is None or kept[:2] != (lens, device):
            self._kept = lens, device, None
            return lens.rays(*pixel_centers(window, device))
        whole = kept[2]
        if whole is None:
            whole = lens.rays(*pixel_centers((0, 0, int(lens.height), int(lens.width)), device))
            self._kept = lens, device, whole
        top, left, rows, columns = window
        cut = slice(top, top + rows), slice(left, left + columns)
        return LocalRays(None, whole.directions[cut], None if whole.exist is None else whole.exist[cut])


_LATEST = _LatestLens()


class _LatestPinhole:
    """A cache of the latest pinhole's directions on a GPU, where computing them anew would be a dozen launches."""

    def __init__(self) -> None:
        self._kept: tuple[Lens, torch.device, Tensor] | None = None

    def directions(self, lens: Lens, window: Window, device: torch.device) -> Tensor:
        """Unit vectors [rows, columns, 3] of a crop in camera space, float32."""
        if lens.width * lens.height > _MOST_KEPT:
            return _pinhole_directions(lens, window, device)
        kept = self._kept  # read once: another thread may replace it
        if kept is None or kept[:2] != (lens, device):
            with torch.inference_mode(False):  # else it could not be used in training
                kept = lens, device, _pinhole_directions(lens, (0, 0, int(lens.height), int(lens.width)), device)
            self._kept = kept
        top, left, rows, columns = window
        return kept[2][top : top + rows, left : left + columns]


_LATEST_PINHOLE = _LatestPinhole()


def _pinhole_directions(lens: Lens, window: Window, device: torch.device) -> Tensor:
    column, row = pixel_centers(window, device)
    x = ((column - lens.cx) / lens.fx).expand(window[2], -1)
    y = ((row - lens.cy) / lens.fy).expand(-1, window[3])
    return torch.nn.functional.normalize(torch.stack([x, -y, -torch.ones_like(x)], -1), dim=-1).float()


def _bundle(rays: LocalRays) -> RayBundle:
    """Rays of the scene as nerfstudio has them."""
    assert rays.origins is not None
    bundle = RayBundle(rays.origins, rays.directions, torch.ones_like(rays.directions[..., :1]))
    if rays.exist is not None:
        bundle.nears = torch.zeros_like(bundle.pixel_area)
        bundle.fars = torch.where(rays.exist[..., None], torch.inf, bundle.nears)
    return bundle


def _cut(bundle: RayBundle, box: OrientedBox) -> None:
    """Clip a bundle's rays to a box."""
    origins, directions = bundle.origins.reshape(-1, 3), bundle.directions.reshape(-1, 3)
    enters, leaves = (t.reshape(bundle.pixel_area.shape) for t in intersect_obb(origins, directions, box))
    if bundle.fars is not None:
        enters, leaves = (torch.where(bundle.fars > 0, t, 0.0) for t in (enters, leaves))
    bundle.nears, bundle.fars = enters, leaves
