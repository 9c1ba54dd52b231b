"""A lock that threads get in the order in which they asked."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """First come, first served; otherwise as `threading.Lock` in a `with` statement.

    `threading.Lock` belongs to whoever asks first after it was let go. A training loop asks again within a millisecond,
    and on a busy machine the viewer's thread, woken by then but not yet running, can lose for minutes on end.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self) -> None:
        """Wait for one's turn."""
        with self._mutex:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()  # `release` of the one before lets it go
        except BaseException:  # Ctrl+C: don't be given a lock that nobody would give back
            with self._mutex:
                given = turn not in self._waiting
                if not given:
                    self._waiting.remove(turn)
            if given:
                self.release()
            raise

    def release(self) -> None:
        """Hand the lock to the one who has waited longest.

        Raises:
            RuntimeError: if nobody holds it.
        """
        with self._mutex:
            if not self._held:
                raise RuntimeError("a lock that is not held can't be released")
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._held

    def __enter__(self) -> FairLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
