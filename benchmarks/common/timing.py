"""Times of repeated work on a CPU, in milliseconds.

CPU time is that of all threads together. Unlike wall time, it hardly depends on what else the machine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ns_support.concurrency.threads import num_threads


def milliseconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begin)


def least_cpu_milliseconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Smallest CPU time of `repeats` calls, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - begin))
    return min(times[1:])


@dataclass
class Clock:
    """Times of the rounds of a forward and a backward pass; CPU time is divided by the number of threads."""

    cpu_forward: list[float] = field(default_factory=list)
    cpu_both: list[float] = field(default_factory=list)
    wall_both: list[float] = field(default_factory=list)

    def measure(self, forward: Callable[[], Any], backward: Callable[[Any], None]) -> None:
        """Add a round: `backward` is called with what `forward` returns."""
        threads = num_threads()
        cpu, wall = time.process_time(), time.perf_counter()
        out = forward()
        self.cpu_forward.append(1e3 * (time.process_time() - cpu) / threads)
        backward(out)
        self.cpu_both.append(1e3 * (time.process_time() - cpu) / threads)
        self.wall_both.append(1e3 * (time.perf_counter() - wall))
