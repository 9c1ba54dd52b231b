"""Checks and corrects poses: finite, right-handed rotations, and positions that float32 can distinguish."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ns_support.data.warnings import warn_once
from ns_support.errors import UserError

Poses = NDArray[np.float64]
"""[N, 3, 4] or [N, 4, 4], camera to world."""

_NOISE = 1e-3
"""Deviation of R^T R from the identity up to which a rotation is not changed."""
_ROUNDED = 3e-2
"""Deviation up to which it counts as a rounded rotation, and is corrected."""
_FAR = 100.0
"""Distance from the origin, in units of the cameras' extent, from which an offset is subtracted."""
_BEYOND, _FARTHEST = 1e12, 1e15
"""The same for float64: relative distance from which positions are refused, and distance from which whole numbers are
not exact."""
_LOST = 2e4
"""Relative distance from which positions in float32 are too coarse: 1 / 2^24 of it is 0.1 % of the extent."""


def checked_poses(poses: Poses, names: Sequence[object], where: object) -> Poses:
    """Poses with any uniform scale removed from their rotations; the same array if nothing needs to be corrected.

    Args:
        poses: N poses.
        names: the name of each, for messages.
        where: the file that they are from.

    Raises:
        UserError: a pose is not finite, is mirrored, or is not a rotation with a uniform scale.
    """
    for name, pose in zip(names, poses, strict=True):
        if not np.isfinite(pose[:3]).all():
            row, column = np.argwhere(~np.isfinite(pose[:3]))[0]
            many = int((~np.isfinite(poses[:, :3]).all(axis=(1, 2))).sum())
            raise UserError(
                f"The pose of {name} in {where} has {pose[row, column]} in row {row + 1}, column {column + 1} "
                f"({many} of {len(poses)} poses are not finite): leave those images out, or export the poses anew."
            )
    rotations = poses[:, :3, :3]
    determinants = np.linalg.det(rotations)
    _refuse_mirrored(determinants, names, where)
    scales = np.cbrt(determinants)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        units = rotations / scales[:, None, None]
        gram = units.transpose(0, 2, 1) @ units
    deviations = np.nan_to_num(np.abs(gram - np.eye(3)).max(axis=(1, 2)), nan=np.inf)
    worst = int(deviations.argmax()) if len(deviations) else 0
    if len(deviations) and deviations[worst] > _ROUNDED:
        raise UserError(
            f"The pose of {names[worst]} in {where} is not a rotation: its axes are not at right angles or not of one "
            f"length (off by {deviations[worst]:.2g}). Export the poses without scale or shear."
        )
    mended = poses.copy()
    scaled = np.abs(scales - 1.0) > _NOISE
    mended[scaled, :3, :3] = units[scaled]
    if scaled.any():
        warn_once(f"The poses in {where} have a scale of {scales[scaled][0]:.6g} in their rotations: taken out.")
    rounded = deviations > _NOISE
    if rounded.any():
        u, _, v = np.linalg.svd(mended[rounded, :3, :3])
        mended[rounded, :3, :3] = u @ v
        warn_once(f"{int(rounded.sum())} poses in {where} are rotations only roughly: the nearest ones are taken.")
    return mended if scaled.any() or rounded.any() else poses


def _refuse_mirrored(determinants: NDArray[np.float64], names: Sequence[object], where: object) -> None:
    mirrored = np.flatnonzero(determinants < 0)
    if len(mirrored):
        raise UserError(
            f"The pose of {names[mirrored[0]]} in {where} is mirrored, determinant {determinants[mirrored[0]]:.3g} "
            f"({len(mirrored)} of {len(determinants)} are): it comes from a left-handed system, as Unity's. Export it "
            "right-handed (x to the right, y up, the camera looks along -z)."
        )
    flat = np.flatnonzero(determinants == 0)
    if len(flat):
        raise UserError(f"The pose of {names[flat[0]]} in {where} is not a rotation: its determinant is 0.")


def common_offset(positions: NDArray[np.float64], where: object) -> NDArray[np.float64]:
    """The offset [3] to subtract from positions [N, 3] so that float32 can distinguish them; zeros if they are near.

    A vector of whole numbers, so that the difference is exact. A warning reports it.

    Raises:
        UserError: the positions are too far away for double precision.
    """
    if len(positions) == 0:
        return np.zeros(3)
    low, high = positions.min(0), positions.max(0)
    center = np.round(0.5 * (low + high))
    extent = float((high - low).max())
    # The extent of a single camera, or of cameras in one place, is 0: the unit is then assumed to be metres.
    if float(np.abs(positions).max()) <= _FAR * (extent if extent > 0 else 10.0):
        return np.zeros(3)
    farthest = float(np.abs(positions).max())
    if not farthest < _FARTHEST or (extent > 0 and farthest > _BEYOND * extent):
        raise UserError(
            f"The cameras in {where} are {farthest:.3g} from the origin and only {extent:.3g} apart, too far for the "
            "numbers of a computer: correct the positions."
        )
    written = ", ".join(f"{value:.10g}" for value in center)
    warn_once(
        f"The cameras in {where} are far from the origin for their extent of {extent:.4g}: ({written}) is subtracted. "
        "dataparser_transforms.json, in double precision, leads back to the coordinates of the data."
    )
    return center


def refuse_coarse(positions: NDArray[np.float64], where: object) -> None:
    """Refuse positions [N, 3] that were rounded to float32 far from the origin.

    Raises:
        UserError: they are too coarse for the cameras' extent.
    """
    if len(positions) < 2:
        return
    extent = float((positions.max(0) - positions.min(0)).max())
    farthest = float(np.abs(positions).max())
    if extent > 0 and farthest > _LOST * extent:
        raise UserError(
            f"The cameras of {where} are {farthest:.4g} from the origin and only {extent:.4g} apart, too far for "
            "32-bit numbers: subtract a common offset from all positions."
        )
