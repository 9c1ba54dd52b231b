"""Ctrl+C and SIGTERM during training: the first one ends it after the current step, with a checkpoint.

With several processes, the command that started them forwards its signal as SIGUSR1: Ctrl+C in a terminal reaches all
of them at once, whereas a signal to the command's process id reaches none of them.
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
"""None on Windows, where the processes of a training are ended at once."""
INTERRUPTED = 130
"""Exit code of an interrupted command, by the shells' convention."""
_MESSAGE = "\nStopping after this step and saving. Once more to stop at once.\n"

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def stop_signals(stop: Callable[[], bool]) -> Iterator[None]:
    """Within this context, the first SIGINT or SIGTERM calls a function, and the second raises `KeyboardInterrupt`.

    Only the main thread receives signals: on other threads, such as a notebook's, this has no effect.

    Args:
        stop: requests the end; returns True if the user must wait for it, which is then reported.
    """
    asked = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        if stop():
            # Not through a stream: the signal may have interrupted a write to it.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _MESSAGE.encode())

    with _handled({signal.SIGINT: handler, signal.SIGTERM: handler}):
        yield


@contextmanager
def stop_signals_of_worker(stop: Callable[[], bool]) -> Iterator[None]:
    """`stop_signals` for one of several processes, which are stopped by their parent."""
    parent = os.getppid()

    def orphaned(number: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:  # torch makes the system send SIGINT to its processes when their parent dies
            raise KeyboardInterrupt

    handlers: dict[int, Handler] = {signal.SIGINT: orphaned}
    if _PASSED_ON is not None:
        handlers[_PASSED_ON] = lambda number, frame: stop()
    with _handled(handlers):
        yield


@contextmanager
def pass_signals_on() -> Iterator[Callable[[], bool]]:
    """Within this context, the first SIGINT or SIGTERM is forwarded to the child processes, and the second interrupts.

    Yields:
        A function that returns whether a signal was received.
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
def terminable() -> Iterator[None]:
    """Within this context, SIGTERM interrupts at once as Ctrl+C does, so that child processes are ended, too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled({signal.SIGTERM: interrupt}):
        yield


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
