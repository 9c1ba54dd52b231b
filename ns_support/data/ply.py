"""PLY files of points with scalar properties, written as binary little endian, read in all encodings of the format.

Only what point clouds need is supported: the element `vertex`, which must come first, and its scalar properties. Lists,
faces and other elements after it are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ns_support.errors import UserError
from ns_support.runs.safe_files import replaced

Columns = dict[str, NDArray[np.generic]]
"""Maps a property's name to one value per point, [N], in the order of the file."""

_CODES = {
    "i1": ("char", "int8"),
    "u1": ("uchar", "uint8"),
    "i2": ("short", "int16"),
    "u2": ("ushort", "uint16"),
    "i4": ("int", "int32"),
    "u4": ("uint", "uint32"),
    "f4": ("float", "float32"),
    "f8": ("double", "float64"),
}
"""NumPy's code of each type of the format, and the type's old and new name."""
_CODE_OF = {name: code for code, names in _CODES.items() for name in names}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "<"}
_LONGEST_LINE = 4096


class Ply(NamedTuple):
    """A file's points and the comments in its header.

    Attributes:
        columns: the properties.
        comments: without the word "comment".
    """

    columns: Columns
    comments: list[str]


class _Header(NamedTuple):
    encoding: str
    points: int
    types: list[tuple[str, str]]
    comments: list[str]


def write_ply(path: Path, columns: Mapping[str, NDArray[np.generic]], comments: Sequence[str] = ()) -> None:
    """Write points.

    Args:
        path: the file; its folder is made if necessary.
        columns: at least one property; each [N] of one of the format's types: integers up to 32 bits, float32, float64.
        comments: lines for the header.

    Raises:
        ValueError: columns differ in length or have another type, or a comment or name would break the header.
        UserError: the file can't be written; an existing one is unchanged.
    """
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or any(len(shape) != 1 for shape in lengths.values()):
        raise ValueError(f"columns must all be [N] with the same N, got {lengths}")
    codes = {name: column.dtype.str[1:] for name, column in columns.items()}
    for name, code in codes.items():
        if code not in _CODES:
            raise ValueError(f"column {name!r} must be float32, float64 or an integer of at most 32 bits, got {code}")
        if len(name.split()) != 1:
            raise ValueError(f"a property's name must be one word, got {name!r}")
    for comment in comments:
        if "\n" in comment or not comment.isascii():
            raise ValueError(f"a comment must be one line of ASCII, got {comment!r}")
    rows = np.empty(next(iter(lengths.values())), dtype=[(name, f"<{code}") for name, code in codes.items()])
    for name, column in columns.items():
        rows[name] = column
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {comment}" for comment in comments)]
    lines += [f"element vertex {len(rows)}", *(f"property {_CODES[code][0]} {name}" for name, code in codes.items())]
    with replaced(path) as draft, draft.open("wb") as file:
        file.write("\n".join([*lines, "end_header\n"]).encode("ascii"))
        file.write(rows.tobytes())


def read_ply(path: Path) -> Ply:
    """Read the points of a file.

    Raises:
        UserError: the file is missing, is not a PLY file, ends early, or has a structure that is not supported.
    """
    if not path.is_file():
        raise UserError(f"The PLY file {path} does not exist.")
    with path.open("rb") as file:
        header = _read_header(file, path)
        order = _ORDERS[header.encoding]
        dtype = np.dtype([(name, order + code) for name, code in header.types])
        # Checked before memory is allocated, since a header may claim any number.
        left = path.stat().st_size - file.tell()
        # In ASCII a value takes at least a digit and a separator.
        smallest = 2 * len(header.types) if header.encoding == "ascii" else dtype.itemsize
        if header.points * smallest > left + 1:
            raise UserError(
                f"The PLY file {path} ends after {left // smallest} of the {header.points} points in its header."
            )
        if header.encoding == "ascii":
            rows = _read_ascii(file, dtype, header.points, path)
        else:
            data = file.read(header.points * dtype.itemsize)
            rows = np.frombuffer(data, dtype, len(data) // max(dtype.itemsize, 1))
    if len(rows) != header.points:
        raise UserError(f"The PLY file {path} ends after {len(rows)} of the {header.points} points in its header.")
    # Copies in the machine's byte order, which torch requires.
    return Ply({name: rows[name].astype(code) for name, code in header.types}, header.comments)


def _read_header(file: BinaryIO, path: Path) -> _Header:
    start = file.readline(_LONGEST_LINE)
    if start.strip() != b"ply":
        raise UserError(f"{path} is not a PLY file: it does not begin with the line `ply`.{_what_else(path, start)}")
    encoding, count, elements = "", 0, 0
    types: list[tuple[str, str]] = []
    comments: list[str] = []
    while True:
        raw = file.readline(_LONGEST_LINE)
        line = raw.decode("ascii", errors="replace").strip()
        words = line.split()
        match words:
            case ["end_header"]:
                break
            case ["format", name, _] if name in _ORDERS:
                encoding = name
            case ["comment" | "obj_info", *_]:
                comments.append(line.partition(" ")[2])
            case ["element", "vertex", number] if elements == 0 and number.isdigit():
                elements, count = 1, int(number)
            case ["element", _, _] if elements > 0:
                elements += 1
            case ["property", *_] if elements > 1:
                pass
            case ["property", kind, name] if elements == 1 and kind in _CODE_OF and name not in dict(types):
                types.append((name, _CODE_OF[kind]))
            case [] if raw:
                pass
            case ["element", "chunk", _]:
                raise UserError(
                    f"The PLY file {path} is compressed, as SuperSplat's; export it from there as an uncompressed PLY."
                )
            case _:
                what = f"its header can't be read at {line!r}" if raw else "its header does not end"
                raise UserError(f"The PLY file {path} is not one of points with scalar properties: {what}.")
    if not encoding or not types:
        raise UserError(
            f"The PLY file {path} has no {'vertex properties' if encoding else 'format line'} in its header."
        )
    return _Header(encoding, count, types, comments)


def _what_else(path: Path, start: bytes) -> str:
    """For a file that is not PLY, a sentence on what it seems to be by its first line or its name; may be empty."""
    suffix = path.suffix.lower()
    if start.startswith(b"version https://git-lfs"):
        return " It is a pointer of Git LFS: `git lfs pull` fetches the file."
    if start.lstrip()[:1] == b"<":
        return " It is a web page: download the file itself."
    packed = {b"\x1f\x8b": ".spz", b"NG": ".spz", b"PK": ".sog"}.get(start[:2])
    if packed is None and suffix in (".splat", ".ksplat", ".spz", ".sog"):
        packed = suffix
    if packed is None and path.stat().st_size and path.stat().st_size % 32 == 0:
        packed = ".splat, perhaps"
    return "" if packed is None else f" It holds packed Gaussians ({packed}): convert it to PLY, in SuperSplat for one."


def _read_ascii(file: BinaryIO, dtype: np.dtype[np.void], count: int, path: Path) -> NDArray[np.void]:
    with np.errstate(over="ignore"):  # what a type can't hold becomes infinite, and callers look for that
        return _rows_of_text(file, dtype, count, path)


def _rows_of_text(file: BinaryIO, dtype: np.dtype[np.void], count: int, path: Path) -> NDArray[np.void]:
    rows = np.empty(count, dtype)
    names = dtype.names or ()
    for i in range(count):
        words: list[bytes] = []
        while not words:  # blank lines between rows are skipped
            line = file.readline()
            if not line:
                return rows[:i]
            words = line.split()
        if len(words) != len(names):
            return rows[:i]
        for name, word in zip(names, words, strict=True):
            try:
                rows[name][i] = word
            except (ValueError, OverflowError) as error:
                raise UserError(
                    f"Point {i} of the PLY file {path} has {name} = {word[:40]!r}, which is no number of the type "
                    f"{dtype[name].name}: export the file anew."
                ) from error
    return rows
