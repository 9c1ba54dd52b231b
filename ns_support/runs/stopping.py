"""Ctrl+C and SIGTERM while training: the first one ends it after the step at hand, with a checkpoint.

With several processes, the command that started them passes its signal on as SIGUSR1: a terminal's Ctrl+C reaches all
of them at once, and whoever ends a command by its process number reaches none of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_PASSED_ON = getattr(signal, "SIGUSR1", None)
"""None on Windows, where processes that train together end at once."""
_MESSAGE = "\nStopping after this step and saving. Once more to stop at once.\n"

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def stop_signals(stop: Callable[[], bool]) -> Iterator[None]:
    """In here, the first SIGINT or SIGTERM calls a function, and the second raises `KeyboardInterrupt`.

    Only the main thread gets signals: in others, and in a notebook's, nothing changes.

    Args:
        stop: asks for the end; true if something is still to be waited for, which the user is then told.
    """
    asked = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        if stop():
            # Not through a stream: the signal may have come in the middle of writing to it.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _MESSAGE.encode())

    with _handled({signal.SIGINT: handler, signal.SIGTERM: handler}):
        yield


@contextmanager
def stop_signals_of_worker(stop: Callable[[], bool]) -> Iterator[None]:
    """`stop_signals` for one of several processes, which its parent tells when to stop."""
    parent = os.getppid()

    def orphaned(number: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:  # torch has its processes sent SIGINT when their parent dies
            raise KeyboardInterrupt

    handlers: dict[int, Handler] = {signal.SIGINT: orphaned}
    if _PASSED_ON is not None:
        handlers[_PASSED_ON] = lambda number, frame: stop()
    with _handled(handlers):
        yield


@contextmanager
def pass_signals_on() -> Iterator[Callable[[], bool]]:
    """In here, the first SIGINT or SIGTERM is passed on to this process's children, and the second interrupts it.

    Yields:
        A function that tells whether a signal has come.
    """
    came = False

    def stop() -> bool:
        nonlocal came
        came = True
        children = multiprocessing.active_children()
        if _PASSED_ON is None or not children:
            raise KeyboardInterrupt
        for child in children:
            if child.pid is not None:
                os.kill(child.pid, _PASSED_ON)
        return True

    with stop_signals(stop):
        yield lambda: came


@contextmanager
def _handled(handlers: dict[int, Handler]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
