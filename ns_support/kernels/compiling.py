"""Numba compiles kernels once and keeps them on disk. This module tells the user when it does, and lets go of old ones.

Importing it is enough; a kernel that Numba finds in its cache is not announced.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

from numba.core import caching, event

_PACKAGES = ("raygauss_ns.", "hardmine_ns.", "ns_support.")
MESSAGE = "Compiling kernels for this processor. This takes some ten seconds, once: they are kept on disk."


class _Announcement(event.Listener):
    """Says so when the first kernel of ours is compiled in this process."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        if not self.said and event.data["dispatcher"].py_func.__module__.startswith(_PACKAGES):
            self.said = True
            print(MESSAGE, file=sys.stderr, flush=True)

    def on_end(self, event: event.Event) -> None:
        """Numba asks for it; there is nothing to say."""


announcement = _Announcement()
event.register("numba:compile", announcement)


class _Index(caching.IndexDataCacheFile):
    """Numba's index of a file's compiled kernels, which can be unreadable.

    It is a pickle that names the classes of the kernels' arguments. After an upgrade these may have another name, and
    Numba reads all of the index before it looks whether it belongs to today's source; or the process that wrote it was
    killed. Either way the kernels are compiled anew.
    """

    def _load_index(self) -> dict[Any, str]:
        try:
            index: dict[Any, str] = super()._load_index()
        except (AttributeError, ImportError, EOFError, pickle.UnpicklingError):
            return {}
        return index

    def load(self, key: Any) -> Any:
        """A compiled kernel, or None where there is none that can be read."""
        try:
            return super().load(key)
        except (AttributeError, ImportError, EOFError, pickle.UnpicklingError):
            return None


caching.IndexDataCacheFile = _Index
