"""The schedule of steps: the closed forms against walking slab by slab."""

import math

import pytest
import torch

from raygauss_ns.casting import CastSettings
from raygauss_ns.casting.steps import StepSchedule, advance, step_at, step_lengths, step_schedule

RULES = {
    "uniform": StepSchedule(0.05, 0.0, 0.0, math.inf, 16),
    "grows": StepSchedule(0.05, 0.01, 0.0, math.inf, 16),
    "grows up to a bound": StepSchedule(0.05, 0.01, 0.0, 0.2, 32),
    "published": StepSchedule(0.005, 1 / 1024, 1 / 3, 0.02, 32),
    "grows with falling transmittance alone": StepSchedule(0.05, 0.0, 0.5, 0.3, 16),
    "at its bound from the start": StepSchedule(0.05, 0.01, 0.3, 0.05, 16),
    "grows fast": StepSchedule(0.001, 0.5, 0.0, math.inf, 16),
}


@pytest.fixture(params=RULES.values(), ids=RULES)
def schedule(request):
    return request.param


@pytest.mark.parametrize("transmittance", [1.0, 0.3, 0.002])
@pytest.mark.parametrize("near", [0.0, 0.7, 40.0])
def test_advance_is_walking(schedule, near, transmittance):
    begins = [near]
    while begins[-1] < 90:
        begins.append(begins[-1] + schedule.samples * step_at(begins[-1], transmittance, schedule))
    for start in (0, 1, len(begins) // 2):
        for m in range(start, len(begins) - 1):
            inside = begins[m] + 0.37 * (begins[m + 1] - begins[m])
            assert advance(begins[start], inside, transmittance, schedule) == pytest.approx(begins[m], rel=1e-12)


def test_a_place_that_is_not_behind(schedule):
    assert [advance(2.0, target, 1.0, schedule) for target in (2.0, 1.0, -3.0)] == [2.0] * 3


def test_nothing_ahead_is_far_away(schedule):
    assert 1e13 < advance(2.0, 3e38, 0.5, schedule) < math.inf
    assert 1e13 < advance(2.0, math.inf, 0.5, schedule) < math.inf


def test_published_steps():
    """dt = min(max(t / 1024, dt0) T^(-1/3), 4 dt0) with dt0 = 0.005."""
    schedule = step_schedule(CastSettings(0.005, 0.1, 0.5, 1e-3, 32, 1 / 1024, 1 / 3, 0.02))
    assert schedule == RULES["published"]
    steps = {(1.0, 1.0): 0.005, (10.24, 1.0): 0.01, (100.0, 1.0): 0.02, (10.24, 0.5**3): 0.02, (1.0, 1 / 8): 0.01}
    for (begin, transmittance), step in steps.items():
        assert step_at(begin, transmittance, schedule) == pytest.approx(step)


def test_both_forms_of_the_rule_agree(schedule):
    begins, transmittance = torch.rand(50).double() * 60, torch.rand(50).double()
    steps = step_lengths(begins, transmittance, schedule)
    expected = [step_at(*pair, schedule) for pair in zip(begins.tolist(), transmittance.tolist(), strict=True)]
    torch.testing.assert_close(steps, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("samples", "rounded"), [(1, 16), (16, 16), (17, 32), (128, 128)])
def test_samples_of_a_slab(samples, rounded):
    settings = CastSettings(0.1, 0.1, samples_per_slab=samples)
    assert step_schedule(settings) == StepSchedule(0.1, 0.0, 0.0, math.inf, rounded)
