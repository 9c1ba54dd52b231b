"""A thread that draws for one browser: coarse while the camera moves, sharper and sharper once it rests.

It is used where nerfstudio's own viewer is not: that one draws an image twice, coarse and whole, and needs a trainer.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException

_FIRST = 0.12
"""Seconds that the first frame of a view may take: about eight frames per second while the camera moves."""
_LONGER = 4.0
"""By how much each further frame of the same view may take longer than the one before."""
_SKIPPED = 0.6
"""Fraction of the whole image's pixels from which a frame is the whole image at once."""
_FEWEST = 32 * 32
"""Pixels of the coarsest frame, and of the first, when it is not known yet how fast frames are drawn."""

V = TypeVar("V")


class FrameThread(threading.Thread, Generic[V]):
    """Draws whatever view was requested last, until `close`.

    Args:
        draw: draws a view with about the given number of pixels and sends the frame to the browser. Called in this
            thread; it may raise `IOChangeException` (see `ns_support.viewer.controls.stop_if_unwanted`) once
            `interrupt_render_flag` is set. Returns the number of pixels it drew.
        most: the number of pixels of a view's sharpest frame.
    """

    def __init__(self, draw: Callable[[V, int], int], most: Callable[[V], int]) -> None:
        super().__init__(daemon=True)
        self._draw, self._most = draw, most
        self._changed = threading.Condition()
        self._view: V | None = None
        self._closed = False
        self._coarse = False
        self._pace = _FEWEST / _FIRST
        """Pixels per second of the frame before."""
        self.interrupt_render_flag = False
        """Whether the frame that is being drawn is no longer wanted; named as in nerfstudio's own thread."""

    def request(self, view: V) -> None:
        """Have a view drawn next. A coarse frame that is being drawn is finished, so that motion is seen."""
        with self._changed:
            self._view = view
            self.interrupt_render_flag = not self._coarse
            self._changed.notify()

    def close(self) -> None:
        """Give up the frame that is being drawn, and end."""
        with self._changed:
            self._closed = self.interrupt_render_flag = True
            self._changed.notify()

    def run(self) -> None:
        """Draw until closed."""
        while (view := self._next()) is not None:
            pixels, whole = 0, self._most(view)
            while pixels < whole and self._wanted(coarse=pixels == 0):
                pixels = self._following(pixels, whole)
                try:
                    self._timed(view, pixels)
                except IOChangeException:
                    break

    def _next(self) -> V | None:
        """Wait for a view; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._view is not None or self._closed)
            view, self._view = self._view, None
            return None if self._closed else view

    def _wanted(self, coarse: bool) -> bool:
        """Begin a frame, unless another view was requested."""
        with self._changed:
            if self._view is not None or self._closed:
                return False
            self._coarse, self.interrupt_render_flag = coarse, False
            return True

    def _following(self, before: int, whole: int) -> int:
        """Number of pixels of the frame that follows one of `before` pixels, 0 for none."""
        wanted = math.floor(self._pace * _FIRST) if before == 0 else math.floor(_LONGER * before)
        return whole if wanted > _SKIPPED * whole else max(wanted, min(_FEWEST, whole))

    def _timed(self, view: V, pixels: int) -> None:
        begin = time.perf_counter()
        drawn = self._draw(view, pixels)
        self._pace = drawn / max(time.perf_counter() - begin, 1e-6)
