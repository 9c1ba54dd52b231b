"""Running means of what training steps found, and probabilities from them.

What is drawn with probability q among P counts w = 1 / (P q). With a part u drawn uniformly, w <= 1 / u.
"""

from __future__ import annotations

import torch
from torch import Tensor

RATE = 0.2
"""How far a running mean moves towards what was found: beta."""
UNIFORM_SHARE = 0.2
"""Part u that is drawn uniformly unless told otherwise."""
UNKNOWN = -1.0
"""In place of a running mean of what has not been seen yet."""


def moved(old: Tensor, new: Tensor) -> Tensor:
    """Running means after new ones were found: old + beta (new - old); the first time, what was found.

    Args:
        old: [*] running means, `UNKNOWN` where nothing was seen.
        new: [*] >= 0.
    """
    return torch.where(old < 0, new, old.lerp(new, RATE))


def with_means(memory: Tensor, counts: Tensor) -> Tensor:
    """What is remembered, float64, and where nothing is, the mean of what is; 1 if nothing is.

    Args:
        memory: [*] running means, `UNKNOWN` where nothing was seen.
        counts: [*] >= 0, how much each counts in the mean; at least one that is known counts, if any is.
    """
    known = memory >= 0
    weights = counts * known
    mean = (memory.double() * weights).sum() / weights.sum() if bool(known.any()) else torch.tensor(1.0).double()
    return torch.where(known, memory.double(), mean)


def mixed(wanted: Tensor, even: Tensor, uniform_share: float) -> Tensor:
    """Probabilities (1 - u) wanted / sum + u even.

    Args:
        wanted: [*] >= 0, in any unit. If all are 0, everything is drawn uniformly.
        even: [*] the uniform probabilities, whose sum is 1.
        uniform_share: u in (0, 1].
    """
    total = wanted.sum()
    if not bool(total > 0):
        return even
    return uniform_share * even + (1 - uniform_share) * (wanted / total)
