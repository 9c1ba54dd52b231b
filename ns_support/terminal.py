"""What this package says on the terminal.

Not on nerfstudio's console, which is 120 columns wide whatever the terminal's width, and silent while `SharedTrainer`
sets things up. This one takes its width and colours from the terminal, and obeys NO_COLOR.
"""

from __future__ import annotations

from rich.console import Console

from ns_support.concurrency.processes import Processes

TERMINAL = Console(highlight=False)
"""Writes to whatever `sys.stdout` is at the time."""


def say(text: str, style: str | None = None) -> None:
    """Print a paragraph, wrapped at words to the terminal's width; of several processes, the first one speaks.

    Args:
        text: plain, without markup.
        style: as rich names it, e.g. "yellow" for a warning.
    """
    if Processes.current().rank == 0:
        # A path is longer than some terminals are wide, and is to be copied: words are never broken.
        TERMINAL.print(text, style=style, markup=False, overflow="ignore", crop=False)


def warn(text: str) -> None:
    """Print a warning: a paragraph that stands out."""
    say(text, style="yellow")


def show_command(label: str, command: str) -> None:
    """Print a command with a label before it, on one line however long, so that it can be copied."""
    if Processes.current().rank == 0:
        TERMINAL.print(f"  {label:<12}{command}", markup=False, soft_wrap=True)
