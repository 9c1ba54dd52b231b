"""The rays of training pixels, looked up: what a lens sends through each of its pixels is kept on a GPU.

Computed anew for each batch, they would be dozens of launches, and for a lens with distortion the host would wait for
the iterations of its inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from ns_support.lenses.lens import Lens, pixel_centers

_MOST_KEPT = 1 << 24
"""Pixels of all different lenses together whose directions are kept: 256 MB."""
_PIXELS_AT_ONCE = 1 << 20
_ORTHONORMAL = 1e-6
"""Greatest deviation of a rotation from one, for directions to stay of unit length."""


@dataclass(init=False)
class UnitRays(RayBundle):
    """Rays as the models here take them: finite, float32, of unit length, with a pixel area."""


class RayTable:
    """Directions, in camera space, of all pixels of some cameras.

    Args:
        cameras: C cameras, on the device where the table is to be.
        lenses: their lenses, for which `fits` holds.
    """

    def __init__(self, cameras: Cameras, lenses: Sequence[Lens]) -> None:
        self._poses = cameras.camera_to_worlds.reshape(-1, 3, 4).float()
        device = self._poses.device
        parts, firsts, total = [], dict[Lens, int](), 0
        for lens in dict.fromkeys(lenses):
            firsts[lens] = total
            parts += [_directions(lens, device, top) for top in range(0, int(lens.height), _rows_at_once(lens))]
            total += int(lens.width) * int(lens.height)
        self._directions = torch.cat(parts)
        """[P, 4] float32; the last is 1, or 0 where there is no ray."""
        self._all_exist = bool(self._directions[:, 3].all())
        places = [(firsts[lens], int(lens.width)) for lens in lenses]
        self._places = torch.tensor(places, dtype=torch.int64).to(device)

    @staticmethod
    def fits(cameras: Cameras, lenses: Sequence[Lens]) -> bool:
        """Whether there is a table for cameras: for not too many pixels, and rays through the cameras' centres."""
        poses = cameras.camera_to_worlds
        if not all(lens.has_one_center for lens in lenses):
            return False
        if sum(int(lens.width) * int(lens.height) for lens in set(lenses)) > _MOST_KEPT:
            return False
        rotations = poses.reshape(-1, 3, 4)[:, :, :3].double()
        off = rotations.transpose(1, 2) @ rotations - torch.eye(3, dtype=torch.float64, device=poses.device)
        return bool(poses.isfinite().all()) and float(off.abs().amax()) < _ORTHONORMAL

    def rays(self, camera: Tensor, row: Tensor, column: Tensor) -> UnitRays:
        """Rays through the centres of pixels.

        Args:
            camera: [N] int64.
            row: [N] int64.
            column: [N] int64.

        Returns:
            N rays, with nears and fars if some pixel has no ray.
        """
        first, width = self._places[camera].unbind(-1)
        local = self._directions[torch.addcmul(first, row, width) + column]
        poses = self._poses[camera]
        directions = (poses[:, :, :3] * local[:, None, :3]).sum(-1)
        rays = UnitRays(poses[:, :, 3], directions, torch.ones_like(directions[:, :1]), camera[:, None])
        if not self._all_exist:
            rays.nears = torch.zeros_like(rays.pixel_area)
            rays.fars = torch.where(local[:, 3:] > 0, torch.inf, 0.0)
        return rays


def _rows_at_once(lens: Lens) -> int:
    return max(_PIXELS_AT_ONCE // int(lens.width), 1)


def _directions(lens: Lens, device: torch.device, top: int) -> Tensor:
    """Of some rows of a lens's pixels, as the table has them."""
    rows, columns = min(_rows_at_once(lens), int(lens.height) - top), int(lens.width)
    found = lens.rays(*pixel_centers((top, 0, rows, columns), device))
    exist = torch.ones(rows, columns, device=device) if found.exist is None else found.exist.float()
    return torch.cat([found.directions.expand(rows, columns, 3).float(), exist[..., None]], -1).reshape(-1, 4)
