"""Makes the folder of images that COLMAP and the training read: upright, as JPEG or PNG, and never the user's files."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from ns_support.concurrency.threads import num_threads
from ns_support.data.formats.colmap_parser import MOST_PIXELS
from ns_support.data.images import header, opened, read_image
from ns_support.data.masks import read_mask
from ns_support.errors import UserError
from ns_support.photos.cameras import Shot, device_and_focal

_AS_THEY_ARE = {"JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",)}
_PLAIN_MODES = frozenset({"L", "RGB", "RGBA"})
_LOSSLESS = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif"})
_QUALITY = 97
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image with an EXIF orientation upright."""


class Source(NamedTuple):
    """A photograph to prepare.

    Attributes:
        file: of the user.
        relative: its name for messages.
        name: path below `images/`, with the ending of `file`.
        mask: the user's mask for it.
    """

    file: Path
    relative: str
    name: PurePosixPath
    mask: Path | None = None


class Prepared(NamedTuple):
    """What came of the photographs.

    Attributes:
        shots: those that could be read.
        broken: a sentence for each that could not.
    """

    shots: list[Shot]
    broken: list[str]


def safe_name(relative: Path) -> PurePosixPath:
    """A photograph's path as COLMAP's lists can hold it: white space and undecodable bytes become underscores."""
    text = relative.as_posix().encode("utf8", "surrogateescape").decode("utf8", "replace").replace("\ufffd", "_")
    return PurePosixPath(re.sub(r"[\s\x00-\x1f]", "_", text))


def prepare(sources: list[Source], folder: Path, follow: Callable[[int], None], keep: bool = True) -> Prepared:
    """Fill `images/`, `masks/` (if there are any) and reduced copies of them (`images_2/`, ...) in a folder.

    Args:
        sources: the photographs, with unique names.
        folder: of the result.
        follow: called with the number of photographs that are done.
        keep: whether the source files stay where they are; otherwise they are moved if that is enough.
    """
    masked = any(source.mask is not None for source in sources)
    names = _final_names(sources)
    with ThreadPoolExecutor(max(1, num_threads())) as pool:
        jobs = [
            pool.submit(_one, source, name, folder, masked, keep) for source, name in zip(sources, names, strict=True)
        ]
        shots, broken = [], []
        try:
            for number, job in enumerate(jobs):
                found = job.result()
                if isinstance(found, Shot):
                    shots.append(found)
                else:
                    broken.append(found)
                follow(number + 1)
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
    return Prepared(shots, broken)


def _final_names(sources: list[Source]) -> list[PurePosixPath]:
    """Names with the endings that will be written; unique, also where letters' case does not count."""
    taken: set[str] = set()
    names = []
    for source in sources:
        suffix = source.name.suffix.lower()
        plain = any(suffix in suffixes for suffixes in _AS_THEY_ARE.values())
        ending = source.name.suffix if plain else ".png" if suffix in _LOSSLESS else ".jpg"
        name, number = source.name.with_suffix(ending), 1
        if str(name).lower() in taken:
            name = source.name.with_name(source.name.name + ending)
        while str(name).lower() in taken:
            number += 1
            name = source.name.with_name(f"{source.name.stem}_{number}{ending}")
        taken.add(str(name).lower())
        names.append(name)
    return names


def _one(source: Source, name: PurePosixPath, folder: Path, masked: bool, keep: bool) -> Shot | str:
    """Prepare one photograph; a sentence if it is broken."""
    target = folder / "images" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        orientation = header(source.file).orientation
        pixels = read_image(source.file)
        with opened(source.file) as image:
            exif = image.getexif()
            as_it_is = (
                orientation == 1
                and image.mode in _PLAIN_MODES
                and name.suffix.lower() in _AS_THEY_ARE.get(image.format or "", ())
            )
    except UserError as error:
        return error.message
    picture = upright(Image.fromarray(pixels), orientation)
    if as_it_is:
        _place(source.file, target, keep)
    else:
        _save(picture, target, exif)
    _reduced_copies(picture, folder, "images", name)
    if masked:
        mask = _mask(source, orientation, picture)
        path = PurePosixPath(f"{name}.png")
        (folder / "masks" / path).parent.mkdir(parents=True, exist_ok=True)
        mask.save(folder / "masks" / path)
        _reduced_copies(mask, folder, "masks", path)
    device, focal = device_and_focal(exif, *picture.size)
    return Shot(str(name), source.relative, *picture.size, device, focal)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image turned as its EXIF orientation says."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _place(file: Path, target: Path, keep: bool) -> None:
    """The file under another name: a hard link, or else a link, or else a copy."""
    target.unlink(missing_ok=True)
    file = Path(os.path.realpath(file))
    if not keep:
        os.replace(file, target)
        return
    for way in (os.link, os.symlink, shutil.copy2):
        try:
            way(file, target)
            return
        except OSError as error:  # another file system, or one without links
            failure = error
    raise failure


def _save(picture: Image.Image, target: Path, exif: Image.Exif) -> None:
    """Written beside and renamed: an interrupted run's file may be there already, linked to the user's."""
    draft = target.with_name(f".{target.name}.part")
    if target.suffix.lower() == ".png":
        picture.save(draft, "PNG", compress_level=3)
    else:
        exif[_ORIENTATION] = 1
        try:
            tags = exif.tobytes()
        except Exception:  # of any kind: tags that Pillow reads and can't write
            tags = b""
        picture.convert("RGB").save(draft, "JPEG", quality=_QUALITY, exif=tags)
    os.replace(draft, target)


def reduction(width: int, height: int) -> list[int]:
    """The factors of reduced copies, down to the first whose longer side is at most `MOST_PIXELS`."""
    factors, factor = [], 1
    while max(width, height) / factor > MOST_PIXELS:
        factor *= 2
        factors.append(factor)
    return factors


def _reduced_copies(picture: Image.Image, folder: Path, kind: str, name: PurePosixPath) -> None:
    width, height = picture.size
    for factor in reduction(width, height):
        # Cropped by less than a pixel of the copy: then the copy's focal length is exactly the original's by `factor`.
        cropped = picture.crop((0, 0, width // factor * factor, height // factor * factor))
        small = cropped.reduce(factor)
        if kind == "masks":
            small = small.point(lambda value: 255 if value >= 128 else 0)
        target = folder / f"{kind}_{factor}" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix.lower() == ".png":
            small.save(target, compress_level=3)
        else:
            small.convert("RGB").save(target, "JPEG", quality=_QUALITY, subsampling=0)


def _mask(source: Source, orientation: int, picture: Image.Image) -> Image.Image:
    """The mask of an upright photograph; white if it has none.

    Raises:
        UserError: the mask is of another shape, or can't be read.
    """
    if source.mask is None:
        return Image.new("L", picture.size, 255)
    shows = read_mask(source.mask)[..., 0].numpy()
    mask = Image.fromarray(np.where(shows, np.uint8(255), np.uint8(0)))
    # A mask painted over the photograph as viewers show it is upright already.
    stored = picture.size if orientation < 5 else picture.size[::-1]
    turned = upright(mask, orientation) if _alike(mask.size, stored) else mask
    if not _alike(turned.size, picture.size):
        raise UserError(
            f"The mask {source.mask} is {mask.width} x {mask.height} pixels and its photograph {source.file} "
            f"{picture.width} x {picture.height}: make them equal."
        )
    return turned if turned.size == picture.size else turned.resize(picture.size, Image.Resampling.NEAREST)


def _alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have one shape, within the rounding of a pixel."""
    (w, h), (width, height) = size, other
    return abs(w * height - h * width) <= max(width, height, w, h)


def find_masks(folder: Path, photographs: list[Path], given: Path | None, option: str) -> dict[Path, Path]:
    """The masks of photographs, by photograph.

    Args:
        folder: of the photographs.
        photographs: relative to it.
        given: the user's folder or file of masks; None: `masks` in the folder or beside it.
        option: the setting's name on the command line.

    Raises:
        UserError: the given masks are not there, or fit no photograph.
    """
    if given is not None and given.is_file():
        return dict.fromkeys(photographs, given)
    if given is not None and not given.is_dir():
        raise UserError(f"There is no {given}, which {option} names: give a folder of masks, or one mask.")
    for place in [given] if given is not None else [folder / "masks", folder.parent / "masks"]:
        found = {}
        for photograph in photographs:
            # `images/a.jpg` in a folder with `masks/a.png` beside `images`.
            inner = [photograph, *([Path(*photograph.parts[1:])] if len(photograph.parts) > 1 else [])]
            names = [name for path in inner for name in (Path(f"{path}.png"), path.with_suffix(".png"))]
            file = next((place / name for name in names if (place / name).is_file()), None)
            if file is not None:
                found[photograph] = file
        if found:
            return found
    if given is not None:
        raise UserError(
            f"No mask in {given}, which {option} names, fits a photograph in {folder}: that of {photographs[0]} would "
            f"be {photographs[0].with_suffix('.png')} or {photographs[0]}.png."
        )
    return {}
