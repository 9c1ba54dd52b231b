"""Damage to files: bytes that are cut off, flipped, emptied or exchanged, and senseless numbers in text."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Harm = Callable[[bytes, random.Random], bytes]
"""Maps the contents of a file to damaged ones."""

NUMBERS = ("nan", "inf", "-1", "0", "1e300", "-1e30", "1e-30", "999999999999999999999", "seven", '""', "null", "80")
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e300, 1e-30, float("nan"), float("inf"), 10**30, "word", "", [], {}, [[]], [1, 2, 3]),
    *("../../../../etc/passwd", "/dev/zero", "/proc/self/environ", "a\0b", "x" * 5000),
)
_ENORMOUS = (2**60, 2**63 - 1, 2**40, 2**31, 10**12)


def cut(content: bytes, rng: random.Random) -> bytes:
    """Only the beginning."""
    return content[: rng.randrange(len(content) or 1)]


def flip(content: bytes, rng: random.Random) -> bytes:
    """A few bits."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 8, 64)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def empty(content: bytes, rng: random.Random) -> bytes:
    """Nothing."""
    return b""


def zeros(content: bytes, rng: random.Random) -> bytes:
    """As many zeros, or from some place on."""
    start = rng.choice((0, rng.randrange(len(content) or 1)))
    return content[:start] + bytes(len(content) - start)


def noise(content: bytes, rng: random.Random) -> bytes:
    """As many random bytes."""
    return rng.randbytes(len(content) or 1000)


def hole(content: bytes, rng: random.Random) -> bytes:
    """A part is missing, or there twice."""
    start = rng.randrange(len(content) or 1)
    end = min(start + rng.choice((1, 8, 512, 4096)), len(content))
    return content[:start] + (content[start:end] * 2 if rng.random() < 0.5 else b"") + content[end:]


def enormous(content: bytes, rng: random.Random) -> bytes:
    """An enormous number in the place of eight bytes, the first ones every other time."""
    start = 0 if rng.random() < 0.5 else rng.randrange(max(len(content) - 8, 1))
    return content[:start] + struct.pack("<Q", rng.choice(_ENORMOUS)) + content[start + 8 :]


def number(content: bytes, rng: random.Random) -> bytes:
    """A senseless number in the place of one in a text."""
    text = content.decode("latin-1")
    found = list(re.finditer(r"(?<![\w.])-?\d[\d.e+-]*", text))
    if not found:
        return flip(content, rng)
    match = rng.choice(found)
    return (text[: match.start()] + rng.choice(NUMBERS) + text[match.end() :]).encode("latin-1")


def entry(content: bytes, rng: random.Random) -> bytes:
    """A senseless value in the place of one of JSON, or an entry less."""
    root = json.loads(content)
    place, path = root, []
    while isinstance(place, (dict, list)) and place and (not path or rng.random() < 0.75):
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        path.append((place, key))
        place = place[key]
    parent, key = path[-1]
    if rng.random() < 0.2:
        del parent[key]
    else:
        parent[key] = rng.choice(VALUES)
    return json.dumps(root).encode()


BYTES: dict[str, Harm] = {
    "cut": cut,
    "flipped bits": flip,
    "empty": empty,
    "zeros": zeros,
    "noise": noise,
    "hole": hole,
    "enormous": enormous,
}
TEXT = {"number": number}


def harm(path: Path, kinds: dict[str, Harm], rng: random.Random) -> str:
    """Damage a file; returns the kind of damage."""
    name = rng.choice(list(kinds))
    path.write_bytes(kinds[name](path.read_bytes(), rng))
    return name
