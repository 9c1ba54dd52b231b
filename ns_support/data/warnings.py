"""One line of warning, once."""

from __future__ import annotations

from collections.abc import Hashable

from ns_support.terminal import warn

_said: set[Hashable] = set()


def forget_warnings() -> None:
    """Print again what has been printed, as for another run."""
    _said.clear()


def warn_once(text: str, about: Hashable = None) -> None:
    """Print a warning, unless the same has been printed before.

    Args:
        text: whole sentences, without a line break.
        about: what makes two warnings the same; None: their text.
    """
    key = text if about is None else about
    if key not in _said:
        _said.add(key)
        warn(f"Warning: {text}")
