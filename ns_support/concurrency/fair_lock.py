"""A lock that is granted in the order of requests."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """First come, first served; otherwise like `threading.Lock` in a `with` statement.

    A `threading.Lock` goes to the first thread that requests it after its release. A training loop requests it again
    within a millisecond. On a busy machine the viewer's thread, already woken but not yet running, can then lose the
    race for minutes.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self) -> None:
        """Wait for the lock."""
        with self._mutex:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()  # until the previous holder's `release`
        except BaseException:  # Ctrl+C: do not keep a lock that nobody would release
            with self._mutex:
                given = turn not in self._waiting
                if not given:
                    self._waiting.remove(turn)
            if given:
                self.release()
            raise

    def release(self) -> None:
        """Pass the lock to the thread that has waited longest.

        Raises:
            RuntimeError: it is not held.
        """
        with self._mutex:
            if not self._held:
                raise RuntimeError("a lock that is not held can't be released")
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False

    def locked(self) -> bool:
        """Whether it is held."""
        return self._held

    def __enter__(self) -> FairLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
