import multiprocessing
import os
import threading

import pytest
import torch

from ns_support.concurrency.threads import num_threads, run_on_threads, share_threads

# Long enough for a loaded machine, short enough to fail a test that would hang.
SECONDS = 20.0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_thread_takes_its_share(threads):
    shares = []
    run_on_threads(lambda thread, of: shares.append((thread, of)), threads)
    assert sorted(shares) == [(i, threads) for i in range(threads)]


def test_all_run_at_once():
    meeting = threading.Barrier(3, timeout=SECONDS)
    run_on_threads(lambda thread, of: meeting.wait() and None, 3)


def test_torch_decides_how_many(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert num_threads() == 3
    seen = []
    run_on_threads(lambda thread, of: seen.append(of))
    assert seen == [3, 3, 3]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_reaches_the_caller_after_all_have_finished(failing):
    finished = []

    def worker(thread, of):
        if thread == failing:
            raise ArithmeticError(f"thread {thread}")
        threading.Event().wait(0.05)
        finished.append(thread)

    with pytest.raises(ArithmeticError, match=f"thread {failing}"):
        run_on_threads(worker, 3)
    assert sorted(finished) == [i for i in range(3) if i != failing]
    run_on_threads(lambda thread, of: finished.append(thread), 3)
    assert len(finished) == 5


def test_two_callers_at_once():
    sums = {"training": [], "viewer": []}

    def call_often(caller):
        for _ in range(200):
            done = []
            run_on_threads(lambda thread, of, done=done: done.append(thread), 3)
            sums[caller].append(sum(done))

    callers = [threading.Thread(target=call_often, args=(caller,)) for caller in sums]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(SECONDS)
    assert sums == {"training": [3] * 200, "viewer": [3] * 200}


def _report_from_child(results):
    done = []
    run_on_threads(lambda thread, of: done.append(thread), 3)
    results.put(sorted(done))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork")
# What Python warns of here, a fork while threads exist, is what the test is about.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_works_in_a_child_forked_after_use():
    run_on_threads(lambda thread, of: None, 3)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_report_from_child, args=(results,))
    child.start()
    try:
        assert results.get(timeout=SECONDS) == [0, 1, 2]
    finally:
        child.join(SECONDS)
        child.kill()


def test_processes_share_the_cores(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for processes in (1, 2, 3, 20):
        share_threads(processes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    share_threads(2)  # not more than before
    assert chosen == [4, 2, 1, 2]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    share_threads(2)
    assert len(chosen) == 4
