"""Reads the lens from the entries of a transforms.json, given for the whole file or per frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, CameraType

from ns_support.data.warnings import warn_once
from ns_support.errors import UserError

LENS_ENTRIES = frozenset(
    {"fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4", "p1", "p2", "distortion_params", "camera_model", "is_fisheye"}
)
"""Entries that describe a lens beyond its angle of view."""
_SYNONYMS = {"PERSPECTIVE": "PINHOLE", "FISHEYE": "OPENCV_FISHEYE", "KANNALA_BRANDT": "OPENCV_FISHEYE"}
_ONE_TERM, _FISHEYE_TERMS = "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"
_NOT_A_PLANE = {CameraType.FISHEYE, CameraType.FISHEYE624}
_UNUSABLE = ("k5", "k6", "b1", "b2", "s1", "s2", "s3", "s4", "sx1", "sy1", "tau_x", "tau_y", "ftheta_p0", "ftheta_p1")
_FLAGS = ("equirectangular", "latlong", "is_equirectangular")


class LensEntries(NamedTuple):
    """A frame's lens.

    Attributes:
        kind: nerfstudio's camera type.
        fx: focal length (pixels).
        fy: focal length (pixels).
        cx: principal point (pixels).
        cy: principal point (pixels).
        width: of the image (pixels).
        height: of the image (pixels).
        distortion: nerfstudio's k1, k2, k3, k4, p1, p2, or the 12 of FISHEYE624.
    """

    kind: CameraType
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    distortion: tuple[float, ...]


def read_lens(
    frame: Mapping[str, Any], whole: Mapping[str, Any], size: Callable[[], tuple[int, int]], where: str
) -> LensEntries:
    """The lens of a frame.

    Args:
        frame: its own entries, which take precedence.
        whole: the entries of the file.
        size: returns the image's width and height; called only if the entries lack them.
        where: the file and the frame, for messages.

    Raises:
        UserError: an entry is missing, is not a number, or describes a lens that is not supported.
    """
    number = _Numbers(frame, whole, where)
    kind = _kind(frame, whole, where)
    for name in _UNUSABLE:
        if number(name, 0.0) != 0.0:
            raise UserError(
                f"{where} has the lens coefficient {name} = {number(name)}, which no camera model of nerfstudio has "
                "(k4 to k6 of OpenCV's rational model among them): undistort the images, or calibrate without it."
            )
    width, height = number("w"), number("h")
    if width is None or height is None:
        columns, rows = size()
        width, height = width or columns, height or rows
    if not (1 <= width < 1e6 and 1 <= height < 1e6):
        raise UserError(f"{where} has an image size of {width:g} x {height:g} pixels (w, h): correct it.")
    fx, fy = _focal_lengths(number, kind, width, height, where)
    for name, value in (("fl_x", fx), ("fl_y", fy)):
        if not value > 0:
            raise UserError(f"{where} has the focal length {name} = {value:g}: it must be positive.")
    if number("fl_x") is not None:
        absent = [name for name in ("cx", "cy", "fl_y") if number(name) is None and kind is CameraType.PERSPECTIVE]
        if absent:
            warn_once(
                f"{where} has no {', '.join(absent)}: the image's middle and square pixels are taken. Add them if the "
                "camera was calibrated.",
                about=("middle", where.partition(" (")[0]),
            )
    cx, cy = number("cx", 0.5 * width), number("cy", 0.5 * height)
    assert cx is not None
    assert cy is not None
    return LensEntries(kind, fx, fy, cx, cy, int(width), int(height), _distortion(number, frame, whole, kind, where))


class _Numbers:
    """Entries as finite numbers; those of the frame take precedence over those of the file."""

    def __init__(self, frame: Mapping[str, Any], whole: Mapping[str, Any], where: str) -> None:
        self._sources, self._where = (frame, whole), where

    def __call__(self, name: str, otherwise: float | None = None) -> float | None:
        for source in self._sources:
            value = source.get(name)
            if value is not None:
                return self.number(name, value)
        return otherwise

    def number(self, name: str, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self._where} has {name} = {value!r}, which is not a number.") from error
        if not math.isfinite(number):
            raise UserError(f"{self._where} has {name} = {number}: it must be finite.")
        return number

    def first(self, names: tuple[str, ...]) -> tuple[str, float] | None:
        """The first of the names that has an entry; the frame is searched before the file."""
        for source in self._sources:
            for name in names:
                if source.get(name) is not None:
                    return name, self.number(name, source[name])
        return None


def _kind(frame: Mapping[str, Any], whole: Mapping[str, Any], where: str) -> CameraType:
    for flag in _FLAGS:
        if _true(frame.get(flag, whole.get(flag))):
            raise UserError(
                f'{where} has {flag}, whose axes differ from nerfstudio\'s: convert it to "camera_model": '
                '"EQUIRECTANGULAR".'
            )
    name = frame.get("camera_model", whole.get("camera_model"))
    fisheye = _true(frame.get("is_fisheye", whole.get("is_fisheye")))
    if name is None:
        return CameraType.FISHEYE if fisheye else CameraType.PERSPECTIVE
    upper = str(name).strip().upper()
    upper = _SYNONYMS.get(upper, upper)
    if upper in (_ONE_TERM, _FISHEYE_TERMS):
        upper = "OPENCV_FISHEYE"
    if upper == "FULL_OPENCV" and not any(float(frame.get(k, whole.get(k)) or 0.0) for k in ("k4", "k5", "k6")):
        upper = "OPENCV"  # without the rational terms the two are equal
    if upper not in CAMERA_MODEL_TO_TYPE:
        raise UserError(
            f"{where} has the camera_model {name!r}, which is not supported; known are "
            f"{', '.join(CAMERA_MODEL_TO_TYPE)}. Undistort the images (then it is PINHOLE), or calibrate with one of "
            "these."
        )
    kind = CAMERA_MODEL_TO_TYPE[upper]
    if fisheye and kind not in _NOT_A_PLANE:
        raise UserError(
            f"{where} has both is_fisheye and the camera_model {name!r}, which is no fisheye: remove the one that is "
            "wrong."
        )
    return kind


def _true(value: Any) -> bool:
    return value.strip().lower() in ("true", "1", "yes") if isinstance(value, str) else bool(value)


def _focal_lengths(number: _Numbers, kind: CameraType, width: float, height: float, where: str) -> tuple[float, float]:
    across = number.first(("fl_x", "x_fov", "camera_angle_x"))
    down = number.first(("fl_y", "y_fov", "camera_angle_y"))
    if across is None and kind is CameraType.EQUIRECTANGULAR:
        return 0.5 * width, height
    if across is None and down is None:
        raise UserError(
            f"{where} has neither a focal length (fl_x, in pixels) nor an angle (camera_angle_x, in radians): add one."
        )
    if across is None:
        assert down is not None
        fy = _pixels(down, height, where)
        return fy, fy
    fx = _pixels(across, width, where)
    # An angle for the whole file does not apply to the other axis of a frame with its own focal length.
    if down is None or (across[0] == "fl_x" and down[0] != "fl_y"):
        return fx, fx
    return fx, _pixels(down, height, where)


def _pixels(entry: tuple[str, float], size: float, where: str) -> float:
    name, value = entry
    if name.startswith("fl_"):
        return value
    angle = math.radians(value) if name.endswith("fov") else value
    if not 0 < angle < math.pi:
        unit = "degrees, between 0 and 180" if name.endswith("fov") else "radians, between 0 and pi"
        raise UserError(f"{where} has {name} = {value:g}; it must be in {unit}.")
    return 0.5 * size / math.tan(0.5 * angle)


def _distortion(
    number: _Numbers, frame: Mapping[str, Any], whole: Mapping[str, Any], kind: CameraType, where: str
) -> tuple[float, ...]:
    expected = 12 if kind is CameraType.FISHEYE624 else 6
    given = frame.get("distortion_params", whole.get("distortion_params"))
    if given is not None:
        if not isinstance(given, list) or len(given) != expected:
            form = "k0..k5, p0, p1, s0..s3" if expected == 12 else "k1, k2, k3, k4, p1, p2"
            raise UserError(f"{where} has distortion_params = {given!r}; it must be the {expected} numbers {form}.")
        return tuple(number.number("distortion_params", value) for value in given)
    if expected == 12:
        raise UserError(f"{where} has no distortion_params, FISHEYE624's 12 numbers k0..k5, p0, p1, s0..s3: add them.")
    return tuple(number(name, 0.0) or 0.0 for name in ("k1", "k2", "k3", "k4", "p1", "p2"))
