"""What follows from a lens for each pixel of an image, kept for lenses that come back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from ns_support.lenses.lens import Lens

T = TypeVar("T")

_STALE = 4096
"""Requests after which a lens that was not asked for makes room for others."""
_MANY = 256
"""Lenses from which on stale ones are looked for although there is room: a viewer that zooms has many."""


@dataclass
class _Entry(Generic[T]):
    used: int
    pixels: int
    made: T | None = None


class KeptByLens(Generic[T]):
    """A bounded cache, for any number of threads.

    What is kept stays while it is used: of a scene with more lenses than there is room for, some are kept for good
    and the others never are, since each would have to be made for a single use.

    Args:
        most: pixels of all images together.
        first_use: whether to make something the first time that a lens is asked for; or the second time, so that
            lenses that do not come back cost nothing.
    """

    def __init__(self, most: int, *, first_use: bool = False) -> None:
        self._most, self._first_use = most, first_use
        self._entries: dict[tuple[Lens, torch.device], _Entry[T]] = {}
        self._requests, self._lock = 0, threading.Lock()

    def get(self, lens: Lens, device: torch.device, make: Callable[[], T]) -> T | None:
        """What is kept of a lens, made now if that is worth it; None: to be computed without it.

        Args:
            lens: of numbers, not of tensors.
            device: where it is to lie.
            make: computes it for the whole image.
        """
        pixels, key = int(lens.width * lens.height), (lens, device)
        with self._lock:
            self._requests += 1
            entry = self._entries.get(key)
            known = entry is not None
            if entry is None:
                entry = self._entries[key] = _Entry(self._requests, pixels)
                if len(self._entries) > _MANY:
                    self._drop_stale()
            entry.used = self._requests
            if entry.made is not None:
                return entry.made
            if not (known or self._first_use) or not self._has_room(pixels):
                return None
        made = make()
        with self._lock:
            if self._has_room(pixels):  # another thread may have taken it
                entry.made = made
        return made

    def _has_room(self, pixels: int) -> bool:
        if pixels > self._most:
            return False
        if self._kept() + pixels > self._most:
            self._drop_stale()
        return self._kept() + pixels <= self._most

    def _kept(self) -> int:
        return sum(entry.pixels for entry in self._entries.values() if entry.made is not None)

    def _drop_stale(self) -> None:
        oldest = self._requests - _STALE
        self._entries = {key: entry for key, entry in self._entries.items() if entry.used >= oldest}
