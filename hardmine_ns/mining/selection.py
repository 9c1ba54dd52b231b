"""Which rows are drawn, and with which weight: the rules in the notation of `hardmine_ns.mining.api`."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ns_support.concurrency.processes import Processes

MiningRule = Literal["poisson", "systematic", "multinomial", "topk", "off"]
MiningHeads = Literal["together", "separate"]
WEIGHTED: tuple[MiningRule, ...] = ("poisson", "systematic")
"""The rules by inclusion probabilities, whose weights leave no bias."""
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


def union_probabilities(heads: Tensor, expected: float | Tensor, processes: Processes = ALONE) -> Tensor:
    """Probability that a row is drawn for one head at least, each head drawing its own rows.

    With p_h the shares of head h, one scale c for all heads and the draws independent of one another,

        pi_h,i = min(1, c p_h,i),   pi_i = 1 - product over h of (1 - pi_h,i),   c such that sum pi = expected.

    The sum grows with c and is concave in it: Newton's rule, from below, goes up to the solution and never beyond.

    Args:
        heads: [H, B] hardness of the rows for each head, not negative, finite, not all zero. A head for which all rows
            are zero draws none.
        expected: b, the wanted mean number of rows, in (0, B]; a number or a scalar.
        processes: whose rows, all together, B, p and b speak of; each calls this with its own.

    Returns:
        [B] in [0, 1]. Where fewer than `expected` rows are hard for any head, those have 1 and the others 0.
    """
    limits = torch.finfo(heads.dtype)
    share = heads / processes.sum(heads.sum(1, keepdim=True)).clamp(min=limits.tiny)
    # So many heads can't together draw more than this.
    scale = torch.as_tensor(expected, dtype=heads.dtype, device=heads.device) / len(heads)
    for _ in range(_SATURATION_ROUNDS):
        own = (scale * share).clamp(max=1)
        missed = (1 - own).prod(0)
        # Rows that are certain stay so, and have no slope.
        slopes = missed * (share / (1 - own).clamp(min=limits.eps)).sum(0)
        number, slope = processes.sum(torch.stack([_union(own).sum(), slopes.sum()]))
        more = (expected - number).clamp(min=0) / slope.clamp(min=limits.tiny)
        scale = (scale + more).clamp(max=limits.max)
    return _union((scale * share).clamp(max=1))


def _union(own: Tensor) -> Tensor:
    """1 - product of (1 - pi_h), [H, B] -> [B], without the difference that small probabilities would be lost in."""
    union = torch.zeros_like(own[0])
    for probability in own:
        union = union + probability * (1 - union)
    return union


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
    hardness: Tensor, count: int, rule: MiningRule, processes: Processes = ALONE, heads: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Draw the rows to backpropagate. A row with hardness 0 is never drawn.

    Args:
        hardness: [B] g, not negative, finite, not all zero.
        count: b, in [1, B]: exact for `multinomial` and `topk`, the mean for `poisson` and `systematic`.
        rule: as at the head of `hardmine_ns.mining.api`; not "off".
        processes: whose rows, all together, B and b speak of; each draws among its own.
        heads: [H, B] hardness for each head, for which rows are then drawn separately (`union_probabilities`); None:
            rows are drawn by `hardness`. For `poisson` and `systematic`.

    Returns:
        (indices [b] int64, weights [b] of hardness' dtype, or None where every weight is 1).

    Raises:
        ValueError: there is no way to draw by this rule.
    """
    if rule in WEIGHTED:
        if heads is None:
            probability = poisson_probabilities(hardness, count, processes)
        else:
            probability = union_probabilities(heads, count, processes)
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


def check_draws(rule: MiningRule, heads: MiningHeads, fractions: tuple[float, float], decay: float) -> None:
    """Refuse settings by which nothing can be drawn.

    Args:
        rule: as at the head of `hardmine_ns.mining.api`.
        heads: whether rows are drawn for each output separately.
        fractions: least and greatest b / B.
        decay: of tau's running mean.

    Raises:
        ValueError: one of them is out of its range, or heads are separate with a rule that has no weights.
    """
    if rule not in get_args(MiningRule):
        raise ValueError(f"mining rule must be one of {get_args(MiningRule)}, got {rule!r}")
    if heads not in get_args(MiningHeads):
        raise ValueError(f"mining heads must be one of {get_args(MiningHeads)}, got {heads!r}")
    if heads == "separate" and rule not in WEIGHTED:
        raise ValueError(f"with separate mining heads the mining rule must be one of {WEIGHTED}, got {rule!r}")
    least, greatest = fractions
    if not 0 < least <= greatest <= 1:
        raise ValueError(f"mining fractions must satisfy 0 < min <= max <= 1, got min {least} and max {greatest}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay of tau must be in [0, 1), got {decay}")
