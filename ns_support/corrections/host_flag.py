"""A flag in a model's state that the host asks for at each step."""

from __future__ import annotations

from torch import Tensor


class HostFlag:
    """The value of a buffer, read once and again whenever it has changed: each reading waits for a GPU."""

    def __init__(self) -> None:
        self._known: tuple[Tensor, int, bool] | None = None

    def read(self, flag: Tensor) -> bool:
        """The value of `flag`, a scalar that is only written to in place, or replaced."""
        if self._known is None or self._known[0] is not flag or self._known[1] != flag._version:
            self._known = flag, flag._version, bool(flag)
        return self._known[2]
