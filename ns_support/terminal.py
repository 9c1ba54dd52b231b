"""Messages of this package on the terminal.

nerfstudio's console is not used: it is always 120 columns wide, and silenced while `SharedTrainer` sets up. This one
takes its width and colours from the terminal, and obeys NO_COLOR.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import track

from ns_support.concurrency.processes import Processes

TERMINAL = Console(highlight=False)
"""Writes to whatever `sys.stdout` is at the time."""


def say(text: str, style: str | None = None) -> None:
    """Print a paragraph, wrapped at words to the terminal's width; only rank 0 prints.

    Args:
        text: plain, without markup.
        style: as rich names it, e.g. "yellow" for a warning.
    """
    if Processes.current().rank == 0:
        # Words are never broken: a path may be longer than the terminal's width, and users copy it.
        TERMINAL.print(text, style=style, markup=False, overflow="ignore", crop=False)


def warn(text: str) -> None:
    """Print a warning: a paragraph that stands out."""
    say(text, style="yellow")


def show_command(label: str, command: str) -> None:
    """Print a command after a label, on one line of any length, so that it can be copied."""
    if Processes.current().rank == 0:
        TERMINAL.print(f"  {label:<12}{command}", markup=False, soft_wrap=True)


def followed(things: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """The things, while a bar shows how many have been taken.

    Args:
        things: to go through.
        what: is done with them.
        total: their number.
    """
    return track(things, description=what, total=total, transient=True)
