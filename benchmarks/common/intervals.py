"""Intervals of means, from a handful of runs."""

from __future__ import annotations

import numpy as np

_RESAMPLES = 10_000


def bootstrap(values: list[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of some values, and the percentile interval of the mean over resamples of them (Efron 1979).

    With five runs it is a little too narrow: their range has the least and the greatest mean that a resample can have.

    Args:
        values: one a run; those that are NaN make everything NaN.
        level: of confidence, in (0, 1).

    Returns:
        Mean, lower and upper end. Of a single value, that value three times.
    """
    x = np.asarray(values, np.float64)
    drawn = x[np.random.default_rng(0).integers(len(x), size=(_RESAMPLES, len(x)))].mean(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(x.mean()), float(low), float(high)


def in_words(values: list[float]) -> str:
    """Mean and interval, or "-" where a run has no value."""
    if not values or np.isnan(values).any():
        return "-"
    mean, low, high = bootstrap(values)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if len(values) > 1 else f"{mean:.2f}"
