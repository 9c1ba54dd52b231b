"""What benchmarks/mining.py concludes from its points: by curves that are known."""

import argparse
import math
from types import SimpleNamespace

import pytest


@pytest.fixture
def mining(script):
    return script("mining")


def curve(*psnr):
    return [{"seconds": 10.0 * (i + 1), "steps": 100 * (i + 1), "psnr": p} for i, p in enumerate(psnr)]


def run(variant, seed, *psnr):
    rest = dict.fromkeys(("rays", "visible", "searched", "activation_bytes_per_sample"), 1.0)
    return {"variant": variant, "seed": seed, "curve": curve(*psnr), "fraction": 0.5} | rest


def test_seconds_to_a_score_are_interpolated(mining):
    assert mining.seconds_to(curve(10, 20, 30), 25) == pytest.approx(25)
    assert mining.seconds_to(curve(10, 20, 15, 30), 18) == pytest.approx(18)  # the first time
    assert math.isnan(mining.seconds_to(curve(10, 20), 21))
    assert math.isnan(mining.seconds_to(curve(10, 20), 9))  # before the first point: not known when


def test_intervals_hold_the_mean_and_widen_with_the_spread(script):
    intervals = script("common.intervals")
    bootstrap, in_words = intervals.bootstrap, intervals.in_words
    mean, low, high = bootstrap([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert 1.5 < low < 2.1
    assert 3.9 < high < 4.5
    assert bootstrap([2.0]) == (2.0, 2.0, 2.0)
    assert in_words([2.0, math.nan]) == "-"


def test_variants_are_compared_seed_by_seed(mining):
    runs = [run("baseline", 0, 10, 20, 30), run("both", 0, 20, 30, 31)]
    runs += [run("baseline", 1, 11, 21, 31), run("both", 1, 21, 31, 32)]
    record = {"about": {"variants": ["baseline", "both"], "at": [10, 20, 30]}, "runs": runs}
    baseline, both = mining.summary(record, [25], "baseline")
    assert baseline["gain, dB"] == "0.00 [0.00, 0.00]"
    assert both["gain, dB"] == "1.00 [1.00, 1.00]"
    assert both["times faster to 25"].startswith("1.69")  # 25 / 15 and 24 / 14
    assert both["seeds"] == 2


def test_variants_change_what_there_is_to_change(mining):
    """Each name is a field: otherwise the run would fail only when it begins."""
    for changes in mining.VARIANTS.values():
        mining.configure("instant-ngp-hardmine-bounded", "scene", "blender-data", 10, "out", changes)


def test_a_variant_may_name_its_batch(mining):
    assert mining.a_variant("points@8192") == "points@8192"
    for wrong in ("point@8192", "points@", "points@0", "points@8k"):
        with pytest.raises(argparse.ArgumentTypeError, match="point"):
            mining.a_variant(wrong)


def test_activations_are_those_of_a_mined_step(mining, monkeypatch):
    """One step in 64 is done without mining, with far more activations: the first after the run, for once."""
    peaks = iter([900.0, 300.0, 310.0])

    class Meter:
        def __init__(self, parameters):
            self.peak = next(peaks)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    counts = SimpleNamespace(visible=10, searched=20)
    one = SimpleNamespace(
        result=mining.Result("points", 0),
        pipeline=SimpleNamespace(model=SimpleNamespace(parameters=list, sample_counts=counts), train=lambda: None),
        _counts=[(counts, 0.3, 100)] * 4,
        _step=lambda: None,
    )
    monkeypatch.setattr(mining, "ActivationMeter", Meter)
    assert mining.Run.finish(one).activation_bytes_per_sample == pytest.approx(31)
