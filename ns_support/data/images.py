"""Reads images of all pixel formats as 8-bit RGB or RGBA: converted if that is unambiguous, otherwise refused."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from ns_support.data.warnings import warn_once
from ns_support.errors import UserError

_ORIENTATION = 0x0112
_PHOTOMETRIC, _BITS = 262, 258
"""Numbers of EXIF and TIFF tags."""
_WITH_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_PLAIN = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_HEIF = frozenset({".heic", ".heif", ".hif"})
_LINEAR = frozenset({".exr", ".hdr", ".pfm"})
_RAW = frozenset({".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2"})
_USUAL_GAMMA = (0.43, 0.48)
"""Range of PNG's gAMA for images intended for a screen, 1 / 2.2."""
_FEW_LEVELS = 64


class Header(NamedTuple):
    """The properties of an image that are known without decoding it.

    Attributes:
        width: of the image as it is stored (pixels).
        height: of the image as it is stored (pixels).
        alpha: whether it has transparency.
        orientation: the EXIF tag, 1 for "as stored".
    """

    width: int
    height: int
    alpha: bool
    orientation: int


def header(path: Path) -> Header:
    """An image's header, cached until the file changes.

    Raises:
        UserError: the file is missing or is not an image.
    """
    try:
        state = path.stat()
    except FileNotFoundError as error:
        raise UserError(f"There is no image {path}.") from error
    except OSError as error:
        raise UserError(f"The image {path} can't be read: {error.strerror or error}.") from error
    return _header(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1 << 16)
def _header(path: Path, _changed: int, _size: int) -> Header:
    with opened(path) as image:
        width, height = image.size
        orientation = image.getexif().get(_ORIENTATION, 1)
        known = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
        return Header(width, height, image.mode in _WITH_ALPHA or image.has_transparency_data, known)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file opened with Pillow; errors while it is read become a `UserError`.

    Raises:
        UserError: the file is missing, broken or of an unsupported format; names the file and the remedy.
    """
    try:
        if path.suffix.lower() in _HEIF and importlib.util.find_spec("pillow_heif"):
            importlib.import_module("pillow_heif").register_heif_opener()
        if path.exists() and not path.is_file():
            raise UserError(f"The image {path} is not a file.")
        with Image.open(path) as image:
            yield image
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"There is no image {path}.") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise UserError(f"The image {path} can't be read: {_why(path, error)}.") from error


def _why(path: Path, error: BaseException) -> str:
    suffix = path.suffix.lower()
    if not isinstance(error, UnidentifiedImageError):
        return f"{' '.join(str(error).split()).rstrip('.') or type(error).__name__}; copy it anew, or leave it out"
    if path.stat().st_size == 0:
        return "the file is empty"
    if suffix in _HEIF and importlib.util.find_spec("pillow_heif") is None:
        return "HEIC needs a package: `pip install pillow-heif`, or convert the images to JPEG or PNG"
    if suffix in _LINEAR:
        return "it holds linear light in floating point, not colours; convert the images to PNG (sRGB)"
    if suffix in _RAW:
        return "it is a camera's raw file; develop the images to JPEG or PNG"
    return "it is no image of a format that is known; convert it to PNG or JPEG"


def read_image(path: Path, scale: float = 1.0) -> NDArray[np.uint8]:
    """Decode an image.

    Args:
        path: the file; the EXIF orientation is not applied.
        scale: factor to resize by, bilinearly.

    Returns:
        [H, W, 3] or, with transparency, [H, W, 4]. Colours are sRGB: images with another ICC profile are converted.

    Raises:
        UserError: the file can't be read, or its conversion to 8 bits would be ambiguous.
    """
    with opened(path) as image:
        _tell(path, image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            decoded = Image.fromarray(_eight_bits(path, image))
        elif image.mode in _WITH_ALPHA or image.mode in _PLAIN:
            decoded = image
        else:
            raise UserError(f"The image {path} has pixels of the kind {image.mode!r}; convert it to 8-bit RGB or RGBA.")
        profile = image.info.get("icc_profile")
        wanted = "RGBA" if image.mode in _WITH_ALPHA or image.has_transparency_data else "RGB"
        decoded = _as_srgb(path, decoded, profile, wanted)
        if scale != 1.0:
            size = int(decoded.width * scale), int(decoded.height * scale)
            decoded = decoded.resize(size, resample=Image.Resampling.BILINEAR)
        return np.array(decoded)


def _tell(path: Path, image: Image.Image) -> None:
    """Warn about contents of the file that are ignored."""
    gamma = image.info.get("gamma")
    if gamma and "srgb" not in image.info and not _USUAL_GAMMA[0] < gamma < _USUAL_GAMMA[1]:
        warn_once(
            f"Images such as {path} say that their gamma is {gamma:g} (sRGB: 0.45455); their values are taken as they "
            "are. Convert them to sRGB if they look wrong.",
            about=("gamma", path.parent),
        )
    if image.format != "MPO" and getattr(image, "is_animated", False):
        warn_once(f"Images such as {path} hold several frames; the first is taken.", ("several", path.parent))


def _eight_bits(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    """The highest 8 bits of a gray image of more than 8 bits, as Pillow does for colour images."""
    # Pillow scales the values of PPM files to 16 bits, but calls their mode "I".
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        kind = "floating point" if image.mode == "F" else "32-bit"
        raise UserError(
            f"The image {path} has {kind} values, whose black and white are not known; convert it to 8 or 16 bits."
        )
    values: NDArray[Any] = np.array(image).astype(np.int64)
    tags: Any = getattr(image, "tag_v2", {})
    bits = int(np.ravel(tags.get(_BITS, 16))[0])
    bits = bits if 8 <= bits <= 16 else 16
    if len(tags) and tags.get(_PHOTOMETRIC) == 0:  # white is zero
        values = (1 << bits) - 1 - values
    darkest, brightest = (int(v) for v in (values.min(), values.max())) if values.size else (0, 0)
    reduced: NDArray[np.uint8] = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if darkest < brightest and (brightest - darkest) >> (bits - 8) < _FEW_LEVELS:
        warn_once(
            f"16-bit images such as {path} use the values {darkest} to {brightest} only, which leaves "
            f"{int(reduced.max()) - int(reduced.min()) + 1} levels of 256; stretch them to the full range for more.",
            about=("levels", path.parent),
        )
    return reduced


def _as_srgb(path: Path, image: Image.Image, profile: bytes | None, wanted: str) -> Image.Image:
    if image.mode == wanted and not profile:
        return image
    if profile and (conversion := _conversion(profile, image.mode, path)) is not None:
        alpha = image.convert("RGBA").getchannel("A") if wanted == "RGBA" else None
        source = image if image.mode == conversion.source else image.convert(conversion.source)
        converted = ImageCms.applyTransform(source, conversion.transform)
        assert converted is not None
        if alpha is not None:
            converted.putalpha(alpha)
        return converted
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image if image.mode == wanted else image.convert(wanted)


class _Conversion(NamedTuple):
    source: str
    transform: ImageCms.ImageCmsTransform


class _Known(NamedTuple):
    conversion: _Conversion | None
    warning: str


_known: dict[tuple[bytes, str], _Known] = {}


def _conversion(profile: bytes, mode: str, path: Path) -> _Conversion | None:
    """The conversion of a profile's pixels to sRGB; None if it changes nothing or is impossible."""
    key = profile, "CMYK" if mode == "CMYK" else "L" if mode in ("1", "L", "LA", "La") else "RGB"
    if key not in _known:
        _known[key] = _looked_at(*key)
    if _known[key].warning:
        warn_once(f"The colours of images such as {path} {_known[key].warning}", about=("profile", key, path.parent))
    return _known[key].conversion


def _looked_at(profile: bytes, source: str) -> _Known:
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = " ".join((ImageCms.getProfileDescription(found) or "without a name").split())
        if "srgb" in name.lower() and source == "RGB":
            return _Known(None, "")
        target = ImageCms.createProfile("sRGB")
        # Two threads decode images, and a transform with a cache must not be used by both.
        transform = ImageCms.buildTransform(found, target, source, "RGB", flags=ImageCms.Flags.NOCACHE)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        return _Known(None, f"are taken for sRGB, as their colour profile can't be used ({reason}).")
    return _Known(_Conversion(source, transform), f"are converted from the profile {name!r} to sRGB.")


def missing(paths: list[Path]) -> list[Path]:
    """The files that do not exist."""
    return [path for path in paths if not os.path.isfile(path)]
