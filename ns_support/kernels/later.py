"""Numbers that a GPU computes in one step and the host reads in a later one, so that it does not wait for them."""

from __future__ import annotations

import torch
from torch import Tensor


class Later:
    """Numbers on their way from a GPU to the host.

    The copy runs while the host goes on. Who reads the numbers a step later finds them there, unless the host is more
    than a step ahead: then it waits until the GPU has come to where they were sent. What is read does not depend on
    how fast either is. On a CPU, numbers are read as they were when they were sent.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._arrival: torch.cuda.Event | None = None
        self._sent = False

    @property
    def sent(self) -> bool:
        """Whether something was sent and has not been read."""
        return self._sent

    def send(self, numbers: Tensor) -> None:
        """Begin to copy numbers [n], always as many; what was sent before is forgotten."""
        if self._buffer is None:
            self._buffer = torch.zeros(numbers.shape, dtype=numbers.dtype)
            if numbers.is_cuda:
                self._buffer, self._arrival = self._buffer.pin_memory(), torch.cuda.Event()
        # The buffer is free: a copy to it that was not read comes before this one on the same stream.
        self._buffer.copy_(numbers, non_blocking=True)
        if self._arrival is not None:
            self._arrival.record()
        self._sent = True

    def read(self) -> list[float] | None:
        """The numbers that were sent last; None if they have been read, or none were sent."""
        if not self._sent or self._buffer is None:
            return None
        self._sent = False
        if self._arrival is not None:
            self._arrival.synchronize()
        found: list[float] = self._buffer.tolist()
        return found
