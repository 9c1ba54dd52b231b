"""Whether mining makes a step cheaper, measured while training: where it doesn't, it rests.

What mining saves of a backward pass it must first earn: hardness, the draw, and a second run of the field on what was
drawn. Now and then a step is therefore done without it, and compared with those just before it: over hundreds of steps
the scene and the load of the machine change more than mining does. Times are divided by the step's visible samples, and
medians taken, so that neither a busy moment nor an update of the occupancy grid decides.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

PROBE_EVERY = 64
"""Steps from one without mining to the next: if mining saves a third, these cost 0.8 % of the time."""
_PROBE_AT = 5
"""Within these: neither that step nor the next is one in which the occupancy grid is updated by default (every 4th)."""
_GRID_EVERY = 4
_BEFORE = 8
"""Mined steps whose median a step without mining is compared with."""
_COMPARED = 11
"""Comparisons whose median is the verdict."""
REST = 1024
"""Steps for which mining rests before it is tried again: as training goes on, gradients concentrate."""


class CostWatch:
    """Compares the time of steps with and without mining.

    Call `begin` before each step, and `end` when its samples are known; a step's time ends where the next one begins.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._clock = clock
        self._began: float | None = None
        self._kind: str | None = None
        self._step = self._samples = 0
        self._mined: deque[float] = deque(maxlen=_BEFORE)
        self._ratios: deque[float] = deque(maxlen=_COMPARED)
        self._rests_until = -1

    def begin(self, step: int) -> bool:
        """Start a step.

        Args:
            step: its number; between calls the numbers grow by one, or the step before is not measured.

        Returns:
            Whether the step is to be mined.
        """
        now = self._clock()
        if self._began is not None and self._kind is not None and self._samples > 0 and step == self._step + 1:
            self._note((now - self._began) / self._samples)
        resting, probing = step < self._rests_until, step % PROBE_EVERY == _PROBE_AT
        mined = not (resting or probing)
        near_grid = step % _GRID_EVERY == 0 or (step + 1) % _GRID_EVERY == 0
        self._kind = None if near_grid or resting else ("mined" if mined else "whole")
        self._began, self._step, self._samples = now, step, 0
        return mined

    def end(self, samples: int) -> None:
        """Say how many visible samples the step had."""
        self._samples = samples

    def verdict(self) -> float | None:
        """Time of a mined step over that of a whole one; None until enough of both were measured."""
        return median(self._ratios) if len(self._ratios) == _COMPARED else None

    def rest(self, step: int) -> None:
        """Let mining rest from this step on, and forget what was measured."""
        self._rests_until = step + REST
        self._mined.clear()
        self._ratios.clear()

    def _note(self, seconds: float) -> None:
        """Take the time a sample of the step that has just ended."""
        if self._kind == "mined":
            self._mined.append(seconds)
        elif len(self._mined) == _BEFORE and seconds > 0:
            self._ratios.append(median(self._mined) / seconds)
