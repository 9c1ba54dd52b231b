"""What a photograph says about its camera, and which photographs share one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

_MAKE, _MODEL, _EXIF_TAGS = 271, 272, 0x8769
_FOCAL, _FOCAL_35, _ZOOM, _LENS = 0x920A, 0xA405, 0xA404, 0xA434
"""Numbers of EXIF tags."""
_DIAGONAL_35 = math.hypot(36.0, 24.0)
_PLAUSIBLE = (0.2, 20.0)
"""Range of a focal length in units of the image's longer side."""
_USUAL, _USUAL_FISHEYE = 1.2, 0.5
"""Focal length in units of the longer side, where nothing is known: COLMAP's own guess, and 115 degrees across."""
FISHEYE = "OPENCV_FISHEYE"


@dataclass
class Shot:
    """A photograph as it was prepared.

    Attributes:
        name: path below the result's `images/`, with "/".
        source: path of the user's file, relative to the user's folder.
        width: of the upright image (pixels).
        height: of the upright image (pixels).
        device: make, model, lens, focal length and zoom, as one text; empty if unknown.
        focal: from EXIF (pixels of the upright image); None if unknown.
    """

    name: str
    source: str
    width: int
    height: int
    device: str = ""
    focal: float | None = None


@dataclass
class Group:
    """Photographs of one camera.

    Attributes:
        width: pixels.
        height: pixels.
        focal: to begin with (pixels).
        known: whether EXIF says so.
        names: of the photographs.
    """

    width: int
    height: int
    focal: float
    known: bool
    names: list[str]

    def entries(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def device_and_focal(exif: Image.Exif, width: int, height: int) -> tuple[str, float | None]:
    """The device's description, and its focal length in pixels if EXIF gives the equivalent for 35 mm film.

    Args:
        exif: of the photograph.
        width: pixels, upright or not.
        height: pixels.
    """
    try:
        inner: Any = exif.get_ifd(_EXIF_TAGS)
    except Exception:  # of any kind: the tags are the camera's, and Pillow checks little
        inner = {}
    texts = [_text(exif.get(_MAKE)), _text(exif.get(_MODEL)), _text(inner.get(_LENS))]
    focal, equivalent = _number(inner.get(_FOCAL)), _number(inner.get(_FOCAL_35))
    zoom = _number(inner.get(_ZOOM))
    # Three digits: lenses report their zoom in steps, with noise beyond these.
    numbers = [
        f"{value:.3g}{unit}" for value, unit in ((focal, " mm"), (equivalent, " mm of 35"), (zoom, "x")) if value
    ]
    device = ", ".join(filter(None, [*texts, *numbers]))
    # By CIPA's definition the equivalent has the same field of view across the diagonal.
    pixels = None if equivalent is None else equivalent / _DIAGONAL_35 * math.hypot(width, height)
    if pixels is not None and not _PLAUSIBLE[0] < pixels / max(width, height) < _PLAUSIBLE[1]:
        pixels = None
    return device, pixels


def grouped(shots: list[Shot], model: str) -> list[Group]:
    """One camera for each device, focal length and image size, in the order of first appearance.

    Args:
        shots: the photographs.
        model: COLMAP's camera model, for the focal length of a camera of which none is known.
    """
    groups: dict[tuple[str, int, int], Group] = {}
    for shot in shots:
        key = shot.device, shot.width, shot.height
        if key not in groups:
            longer = max(shot.width, shot.height)
            usual = longer * (_USUAL_FISHEYE if model == FISHEYE else _USUAL)
            # The equivalent of a fisheye lens is given for its middle or for its corner, or is made up.
            known = shot.focal is not None and model != FISHEYE
            focal = shot.focal if known and shot.focal is not None else usual
            groups[key] = Group(shot.width, shot.height, focal, known, [])
        groups[key].names.append(shot.name)
    return list(groups.values())


def _text(value: Any) -> str:
    return " ".join(str(value).replace("\x00", " ").split()) if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None
