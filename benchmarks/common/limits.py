"""Limits of the machine, measured in the same run as what is compared with them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numba import njit

from ns_support.concurrency.threads import num_threads, run_on_threads
from ns_support.kernels.simd import LANES, aligned_zeros, exp, load, pointer, splat, store


@njit(nogil=True)
def _multiply_add(repeats: int, out: Any) -> None:
    a, b, c, d, e, f, g, h = (
        splat(0.1),
        splat(0.2),
        splat(0.3),
        splat(0.4),
        splat(0.5),
        splat(0.6),
        splat(0.7),
        splat(0.8),
    )
    for _ in range(repeats):
        a, b, c, d = a * 0.99 + 0.1, b * 0.99 + 0.1, c * 0.99 + 0.1, d * 0.99 + 0.1
        e, f, g, h = e * 0.99 + 0.1, f * 0.99 + 0.1, g * 0.99 + 0.1, h * 0.99 + 0.1
    store(pointer(out), 0, a + b + c + d + e + f + g + h)


@njit(nogil=True)
def _exponentials(repeats: int, out: Any) -> None:
    a, b, c, d = splat(-0.1), splat(-0.2), splat(-0.3), splat(-0.4)
    for _ in range(repeats):
        a, b, c, d = exp(a) * -0.5, exp(b) * -0.5, exp(c) * -0.5, exp(d) * -0.5
    store(pointer(out), 0, a + b + c + d)


@njit(nogil=True)
def _accumulations(repeats: int, out: Any) -> None:
    """The least work per sample and Gaussian: an exponential, and four sums in memory."""
    p = pointer(out)
    for i in range(repeats):
        for j in range(16):
            f = exp(splat(np.float32(-0.01) * np.float32(i & 15) - np.float32(j)))
            for channel in range(4):
                at = (j * 4 + channel) * LANES
                store(p, at, load(p, at) + f * np.float32(0.3 + 0.1 * channel))


def rate(kernel: Any, operations: int) -> float:
    """Lane operations per second of all threads together."""
    threads = num_threads()
    outs = [aligned_zeros((64, LANES)) for _ in range(threads)]
    kernel(10, outs[0])
    repeats, best = 1 << 16, 0.0
    for _ in range(5):
        begin = time.perf_counter()
        run_on_threads(lambda thread, _: kernel(repeats, outs[thread]), threads)
        best = max(best, threads * repeats * operations * LANES / (time.perf_counter() - begin))
    return best


def limits() -> dict[str, float]:
    """Multiply-adds, exponentials and sample accumulations per second."""
    return {
        "multiply_adds": rate(_multiply_add, 8),
        "exponentials": rate(_exponentials, 4),
        "accumulations": rate(_accumulations, 16),
    }


def copy_bandwidth() -> float:
    """Bytes per second that a copy of 64 MB reads and writes: the memory bandwidth at this moment."""
    source = torch.ones(2**24)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds[1:])
