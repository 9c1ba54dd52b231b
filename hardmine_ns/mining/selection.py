"""Which rows are drawn, and with which weight: the rules in the notation of `hardmine_ns.mining.api`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ns_support.concurrency.processes import Processes

MiningRule = Literal["poisson", "systematic", "multinomial", "topk", "off"]
ALONE = Processes()
_SATURATION_ROUNDS = 8
"""Rounds in which `poisson_probabilities` spreads what saturated rows leave over; more change b by less than 0.1 %."""


def poisson_probabilities(hardness: Tensor, expected: float | Tensor, processes: Processes = ALONE) -> Tensor:
    """Inclusion probabilities pi = min(1, c p) with sum pi = expected, without sorting or asking the host.

    Args:
        hardness: [B], not negative, finite, not all zero.
        expected: b, the wanted mean number of rows, in (0, B]; a number or a scalar.
        processes: whose rows, all together, B, p and b speak of; each calls this with its own.

    Returns:
        [B] in [0, 1]. Where fewer than `expected` rows are hard at all, those have 1 and the others 0.
    """
    share = hardness / processes.sum(hardness.sum())
    probability = (expected * share).clamp(max=1)
    for _ in range(_SATURATION_ROUNDS):
        saturated = probability >= 1
        rest = share.masked_fill(saturated, 0)
        full, left = processes.sum(torch.stack([saturated.sum().to(rest.dtype), rest.sum()]))
        scale = (expected - full).clamp(min=0) / left.clamp(min=torch.finfo(rest.dtype).tiny)
        # Rows of no hardness keep 0: where nothing is left over, the scale is infinite.
        probability = torch.where(rest > 0, (scale * rest).clamp(max=1), probability)
    return probability


def drawn_with(probability: Tensor, rule: MiningRule) -> Tensor:
    """Draw rows by their inclusion probabilities, independently of one another or spread evenly.

    Systematic sampling (Madow 1949) lays the probabilities end to end and takes a row wherever one of the points u,
    u + 1, u + 2, ... falls, with one uniform u for all. Rows that follow one another, as samples on a ray do, are then
    seldom drawn together, and the number of rows is the sum of the probabilities to within one.

    Args:
        probability: [B] in [0, 1].
        rule: "poisson" or "systematic".

    Returns:
        [B] bool.
    """
    if rule == "poisson":
        return torch.rand_like(probability) < probability
    ends = probability.to(torch.float64).cumsum(0) + torch.rand_like(probability[:1], dtype=torch.float64)
    points = torch.floor(ends)
    # The first row takes the first point if that lies within its own probability: floor(u) is 0.
    return points.diff(prepend=torch.zeros_like(points[:1])) > 0


def select_rows(
    hardness: Tensor, count: int, rule: MiningRule, processes: Processes = ALONE
) -> tuple[Tensor, Tensor | None]:
    """Draw the rows to backpropagate. A row with hardness 0 is never drawn.

    Args:
        hardness: [B] g, not negative, finite, not all zero.
        count: b, in [1, B]: exact for `multinomial` and `topk`, the mean for `poisson` and `systematic`.
        rule: as at the head of `hardmine_ns.mining.api`; not "off".
        processes: whose rows, all together, B and b speak of; each draws among its own.

    Returns:
        (indices [b] int64, weights [b] of hardness' dtype, or None where every weight is 1).

    Raises:
        ValueError: there is no way to draw by this rule.
    """
    if rule in ("poisson", "systematic"):
        probability = poisson_probabilities(hardness, count, processes)
        (rows,) = torch.nonzero(drawn_with(probability, rule), as_tuple=True)
        return rows, probability[rows].reciprocal()
    if rule == "topk":
        key = hardness
    elif rule == "multinomial":
        # An exponential race: the b largest g_i / e_i with e_i ~ Exp(1) are b draws without replacement in proportion
        # to g. Unlike torch.multinomial it has no limit of 2^24 rows, and it cannot raise.
        key = hardness / torch.empty_like(hardness).exponential_()
    else:
        raise ValueError(f"rows can't be drawn by the rule {rule!r}")
    values, rows = key.topk(min(count, len(key)), sorted=False)
    if processes.size > 1:
        # What this process draws is among its own `count` largest; the least key that is drawn anywhere is the limit.
        limit = processes.gather(values).topk(count).values[-1]
        rows, values = rows[values >= limit], values[values >= limit]
    return rows[values > 0], None
