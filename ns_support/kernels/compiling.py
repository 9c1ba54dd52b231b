"""Tell the user why the first step takes so long: Numba is compiling kernels, which it does once and keeps on disk.

Importing this module is enough; a kernel that Numba finds in its cache is not announced.
"""

from __future__ import annotations

import sys

from numba.core import event

_PACKAGES = ("raygauss_ns.", "hardmine_ns.")
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
