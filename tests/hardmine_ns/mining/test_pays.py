"""Mining rests where it makes no step cheaper: by a clock that is not the machine's. Needs neither torch nor numba."""

import pytest

from hardmine_ns.mining.pays import PROBE_EVERY, REST, CostWatch


class Steps:
    """Steps that take so many seconds a sample, mined or whole."""

    def __init__(self, mined: float, whole: float):
        self.seconds, self.now, self.step = {True: mined, False: whole}, 0.0, 0
        self.watch = CostWatch(lambda: self.now)

    def run(self, steps: int, samples: int = 100) -> list[bool]:
        found = []
        for _ in range(steps):
            found.append(self.watch.begin(self.step))
            self.watch.end(samples)
            self.now += samples * self.seconds[found[-1]]
            self.step += 1
        return found


def test_one_step_in_many_is_whole():
    mined = Steps(1.0, 2.0).run(10 * PROBE_EVERY)
    assert mined.count(False) == 10
    assert all(not (i % 4 == 0 or (i + 1) % 4 == 0) for i, step in enumerate(mined) if not step)


@pytest.mark.parametrize(("mined", "whole"), [(1.0, 1.5), (1.0, 0.8)])
def test_the_verdict_is_the_ratio_of_the_times(mined, whole):
    steps = Steps(mined, whole)
    steps.run(PROBE_EVERY)
    assert steps.watch.verdict() is None  # a single whole step says nothing
    steps.run(11 * PROBE_EVERY)
    assert steps.watch.verdict() == pytest.approx(mined / whole)


def test_larger_steps_and_busy_moments_do_not_decide():
    steps = Steps(1.0, 2.0)
    for i in range(14 * PROBE_EVERY):
        steps.run(1, samples=100 + 10 * (i % 7))
        if i % 10 == 0:
            steps.now += 1e6
    assert steps.watch.verdict() == pytest.approx(0.5)


def test_a_machine_that_grows_slower_does_not_decide():
    """Compared are steps that follow one another, not whole ones of long ago with mined ones of now."""
    steps = Steps(1.0, 1.2)
    for _ in range(14 * PROBE_EVERY):
        steps.run(1)
        steps.seconds = {mined: 1.002 * seconds for mined, seconds in steps.seconds.items()}
    assert steps.watch.verdict() == pytest.approx(1 / 1.2, rel=0.03)


def test_steps_that_are_not_in_a_row_are_not_measured():
    steps = Steps(1.0, 2.0)
    for _ in range(100):
        steps.run(1)
        steps.step += 10
    assert steps.watch.verdict() is None


def test_it_rests_and_tries_again():
    steps = Steps(1.0, 0.5)
    steps.run(13 * PROBE_EVERY)
    assert steps.watch.verdict() == pytest.approx(2)
    steps.watch.rest(steps.step)
    assert not any(steps.run(REST))
    assert steps.watch.verdict() is None
    assert any(steps.run(2))
