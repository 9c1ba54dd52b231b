"""Warnings that are printed once."""

from __future__ import annotations

from collections.abc import Hashable

from ns_support.terminal import warn

_said: set[Hashable] = set()


def forget_warnings() -> None:
    """Allow all warnings to be printed again, as at the start of another run."""
    _said.clear()


def warn_once(text: str, about: Hashable = None) -> None:
    """Print a warning, unless it has been printed before.

    Args:
        text: full sentences, without a line break.
        about: key by which two warnings count as the same; None: their text.
    """
    key = text if about is None else about
    if key not in _said:
        _said.add(key)
        warn(f"Warning: {text}")
