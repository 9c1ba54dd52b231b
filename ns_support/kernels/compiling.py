"""Announces the compilation of Numba kernels, which are cached on disk, and makes Numba ignore unreadable caches.

Importing this module is enough. A kernel that Numba finds in its cache is not announced.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

from numba.core import caching, event

_PACKAGES = ("raygauss_ns.", "hardmine_ns.", "ns_support.")
MESSAGE = "Compiling kernels for this processor. This takes some ten seconds, once: they are kept on disk."


class _Announcement(event.Listener):
    """Prints a message when the first kernel of these packages is compiled in this process."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        if not self.said and event.data["dispatcher"].py_func.__module__.startswith(_PACKAGES):
            self.said = True
            print(MESSAGE, file=sys.stderr, flush=True)

    def on_end(self, event: event.Event) -> None:
        """Required by Numba; does nothing."""


announcement = _Announcement()
event.register("numba:compile", announcement)


class _Index(caching.IndexDataCacheFile):
    """Numba's index of a file's compiled kernels, which may be unreadable.

    The index is a pickle that refers to the classes of the kernels' arguments. After an upgrade these may have other
    names, and Numba reads the whole index before it checks whether it belongs to the present source. The index is also
    unreadable if the process that wrote it was killed. In both cases the kernels are compiled again.
    """

    def _load_index(self) -> dict[Any, str]:
        try:
            index: dict[Any, str] = super()._load_index()
        except (AttributeError, ImportError, EOFError, pickle.UnpicklingError):
            return {}
        return index

    def load(self, key: Any) -> Any:
        """A compiled kernel, or None if there is none that can be read."""
        try:
            return super().load(key)
        except (AttributeError, ImportError, EOFError, pickle.UnpicklingError):
            return None


caching.IndexDataCacheFile = _Index
