"""Run a Numba kernel on every core without Numba's own thread pool.

The kernels are compiled with `nogil=True`, and each thread takes a part of the work. Numba's `parallel=True` is not
used: its `workqueue` layer aborts the process if two threads launch kernels at once (training and the viewer do), and
its OpenMP layer does not survive a fork after its first use (data workers fork).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

import torch


@lru_cache(maxsize=4)
def _pool(process_id: int, size: int) -> ThreadPoolExecutor:
    # Keyed by process: a forked child must not wait for threads that exist only in its parent.
    return ThreadPoolExecutor(max_workers=size, thread_name_prefix=f"numba-kernel-{process_id}")


def num_threads() -> int:
    """Number of threads a kernel may use: torch's own setting, so that `torch.set_num_threads` controls both."""
    return torch.get_num_threads()


def share_threads(processes: int) -> None:
    """Limit this process to its fraction of the cores, if several processes train on this machine.

    `OMP_NUM_THREADS` in the environment takes precedence, and a smaller number that was set before is kept.

    Args:
        processes: number of training processes on this machine, >= 1.
    """
    if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        affinity = getattr(os, "sched_getaffinity", None)  # Linux only
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        torch.set_num_threads(min(num_threads(), max(1, cores // processes)))


def run_on_threads(worker: Callable[[int, int], None], threads: int | None = None) -> None:
    """Call `worker(thread, threads)` on several threads at once, and return when all have finished.

    A worker should release the GIL. Different threads may call this function at the same time.

    Args:
        worker: called with the index of its thread and the number of threads.
        threads: number of threads; None: `num_threads()`.

    Raises:
        Exception: the first error that a worker raised.
    """
    threads = num_threads() if threads is None else threads
    if threads <= 1:
        worker(0, 1)
        return
    futures = [_pool(os.getpid(), threads - 1).submit(worker, i, threads) for i in range(1, threads)]
    try:
        worker(0, threads)
    finally:
        wait(futures)
    for future in futures:
        future.result()
