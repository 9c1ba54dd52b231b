"""Headers of PLY files and lists of frames, made up or damaged, through the readers themselves."""

from __future__ import annotations

import json
import random
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from trials.harm import BYTES, NUMBERS, TEXT, Harm, entry
from trials.runs import make_scenes

_LONGEST = 10
"""Time (s) after which a reader counts as hanging."""
_MOST = 64 << 20
"""Memory (bytes) that no file of a few kilobytes needs."""
_WORDS = (
    *("ply", "format", "ascii", "1.0", "binary_little_endian", "binary_big_endian", "element", "vertex", "face"),
    *("property", "float", "double", "uchar", "int", "list", "x", "y", "z", "red", "comment", "end_header", "\n", "\n"),
)


@contextmanager
def _limited() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _outcome(read: Callable[[Path], Any], path: Path) -> str:
    from ns_support.errors import UserError

    tracemalloc.reset_peak()
    try:
        with _limited():
            read(path)
    except UserError:
        kind = "sentence"
    except TimeoutError:
        kind = "hang"
    except FileNotFoundError:  # which the data manager puts into a sentence
        kind = "sentence"
    except Exception as error:
        kind = f"traceback: {type(error).__name__}"
    else:
        kind = "ok"
    return kind if tracemalloc.get_traced_memory()[1] < _MOST else f"{kind}, over {_MOST >> 20} MiB"


def _header(rng: random.Random) -> bytes:
    """A header that begins well, with words of the format in any order."""
    words = [rng.choice((*_WORDS, *NUMBERS, "9" * rng.randint(1, 40))) for _ in range(rng.randint(0, 30))]
    start = f"ply\nformat {rng.choice(('ascii', 'binary_little_endian', 'binary_big_endian', 'x'))} 1.0\n"
    middle = f"element vertex {rng.choice((*NUMBERS, str(10 ** rng.randint(0, 40))))}\nproperty float x\n"
    end = rng.choice(("end_header\n", "\nend_header\n", ""))
    return (start + rng.choice((middle, "")) + " ".join(words) + end).encode() + rng.randbytes(rng.randint(0, 200))


def fuzz(work: Path, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Half of the files are PLY files, the other half lists of frames.

    Args:
        work: folder.
        count: number of files.
        seed: of what they contain.

    Yields:
        A row for each: how its reader ended.
    """
    from ns_support.data.formats.captures import read_capture
    from ns_support.data.ply import read_ply
    from ns_support.data.points import read_points

    scenes = make_scenes(work / "fuzz")
    plain = (scenes / "nerfstudio" / "sparse_pc.ply").read_bytes()
    listed = (scenes / "nerfstudio" / "transforms.json").read_bytes()
    assert json.loads(listed)["frames"]
    kinds: dict[str, Harm] = BYTES | TEXT
    tracemalloc.start()
    for i in range(count):
        rng = random.Random(f"{seed} {i}")
        if i % 2 == 0:
            path = work / "fuzzed.ply"
            made = rng.random() < 0.5
            content = _header(rng) if made else rng.choice(list(kinds.values()))(plain, rng)
            reader = rng.choice((read_ply, read_points))
        else:
            path = scenes / "nerfstudio" / "transforms.json"
            harm = entry if rng.random() < 0.6 else rng.choice(list(kinds.values()))
            content, reader = harm(listed, rng), lambda path: read_capture(path.parent)
        path.write_bytes(content)
        kind = _outcome(reader, path)
        row = {"reader": path.name, "n": i, "kind": kind}
        yield row if kind in ("ok", "sentence") else row | {"content": repr(content[:2000])}
    tracemalloc.stop()
