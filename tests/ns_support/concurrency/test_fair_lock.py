import threading
import time

import pytest

from ns_support.concurrency.fair_lock import FairLock


def wait_for_waiters(lock, count):
    deadline = time.monotonic() + 30
    while len(lock._waiting) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_threads_get_it_in_the_order_in_which_they_asked():
    lock, order, threads = FairLock(), [], []

    def take(i):
        with lock:
            order.append(i)

    with lock:
        for i in range(5):
            threads.append(threading.Thread(target=take, args=(i,)))
            threads[-1].start()
            wait_for_waiters(lock, i + 1)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    assert not lock.locked()


def test_a_loop_that_asks_again_at_once_lets_the_others_in():
    lock, rounds, entered = FairLock(), [], threading.Event()

    def visitor():
        with lock:
            entered.set()

    thread = threading.Thread(target=visitor)
    with lock:
        thread.start()
        wait_for_waiters(lock, 1)
    with lock:  # asked after the visitor
        rounds.append(entered.is_set())
    thread.join()
    assert rounds == [True]


def test_one_at_a_time():
    lock, counter = FairLock(), [0]

    def add():
        for _ in range(200):
            with lock:
                value = counter[0]
                time.sleep(0)
                counter[0] = value + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter == [800]


def test_errors_let_it_go_and_it_is_not_let_go_twice():
    lock = FairLock()
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.locked()
    with pytest.raises(RuntimeError, match="not held"):
        lock.release()
