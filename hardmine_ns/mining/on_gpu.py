"""The draw of rows where gradients are on a GPU: the same law as `mining.api` follows step by step.

`draw_poisson` waits once: the host learns three numbers together with how many rows were drawn, and decides afterwards.
Until then the GPU works with what it has, be it senseless: a gradient that is not finite, or none at all.

`draw_padded` does not wait. Only the GPU knows how many rows there are (`Padded.count`), and the result has as many as
the host has asked for: where fewer are drawn, the others have weight 0 in the gradient. The host chooses their number
by the tau of two steps before (`most_drawn`), so that more are drawn once in 10^9 steps; these are then missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hardmine_ns.mining.hardness import flattened, of_heads
from hardmine_ns.mining.selection import WEIGHTED, MiningHeads, MiningRule, drawn_with, union_probabilities
from ns_support.kernels.backend import triton_module

_SEEDS, _APART = (1 << 31) - 1, 0x5DEECE66D
"""Seeds that a kernel takes; and what keeps them from being PyTorch's, whose numbers have a use of their own."""
LAG = 2
"""Steps that the tau which the host knows is older than the one that a draw follows."""


@dataclass(frozen=True)
class Padded:
    """Rows of which only the GPU knows how many there are.

    Attributes:
        count: [] int64 on the GPU, at most as many as the tensors have: the rows behind have no effect, and their
            gradients are 0.
        most: rows that the second run of the field gets.
        report: [4] float64 on the GPU, to be written: rows, those drawn, tau, 1 if all gradients are finite.
    """

    count: Tensor
    most: int
    report: Tensor


class Drawn(NamedTuple):
    """What was drawn.

    Attributes:
        rows: [b] int64; None for all.
        weights: [b] of each; None: 1.
        tau: its new value.
        finite: whether all gradients are.
    """

    rows: Tensor | None
    weights: Tensor | None
    tau: float
    finite: bool


class _Hardness(NamedTuple):
    """Of all rows.

    Attributes:
        values: [B] g, up to a factor; 1 where it is senseless.
        peak: [] the largest entry of any gradient, float64.
        good: [] whether all are finite and some are not 0.
        expected: [] b, rows to be drawn on average.
    """

    values: Tensor
    peak: Tensor
    good: Tensor
    expected: Tensor


def most_drawn(capacity: int, fractions: tuple[float, float], decay: float, tau: float | None) -> int:
    """Rows that a draw needs room for, a multiple of 64.

    In a step, tau falls to `decay` times itself at most, except from 1, where it starts. The number that the rule
    "poisson" draws exceeds its mean by six standard deviations once in 10^9 steps.

    Args:
        capacity: rows that there are at most.
        fractions: least and greatest b / B.
        decay: of tau's running mean.
        tau: as it was `LAG` steps before; None: not known.
    """
    least, greatest = fractions
    fraction = greatest
    if tau is not None and tau > 1 and decay > 0:
        fraction = min(max(1 / (tau * decay**LAG), least), greatest)
    number = fraction * capacity
    return min(math.ceil((number + 6 * math.sqrt(number) + 1) / 64) * 64, capacity)


def saturated(values: Tensor, expected: Tensor) -> Tensor:
    """`selection.poisson_probabilities` by sorting: exact, and a tenth of the launches.

    If the k largest of the values v have probability 1, the others have c v with c = (b - k) / (sum of the others): k
    is the least number for which c times the largest of these is less than 1.

    Args:
        values: [B] hardness, positive for some.
        expected: [] b.

    Returns:
        [B] in [0, 1], whose sum is b, or the number of positive values if that is less.
    """
    largest, _ = values.sort(descending=True)
    # From the small ones upwards: a difference of sums would have lost them.
    rest = largest.flip(0).cumsum(0).flip(0)
    left = (expected - torch.arange(len(values), device=values.device)).clamp_min(0)
    # Not infinite: of a row without hardness, the product would not be a number.
    scales = (left / rest.clamp_min(torch.finfo(rest.dtype).tiny)).clamp_max(torch.finfo(rest.dtype).max)
    k = ((scales * largest >= 1) & (left > 0)).sum().clamp(max=len(values) - 1)
    return (scales.gather(0, k[None]) * values).clamp(max=1)


def draw_poisson(gradients: Sequence[Tensor], tau: Tensor, decay: float, fractions: tuple[float, float]) -> Drawn:
    """Draw rows by the rule "poisson", and advance tau in place.

    Args:
        gradients: of each output, [B, ...] with B > 0, before the activations.
        tau: [] on the same device.
        decay: of tau's running mean.
        fractions: least and greatest b / B.
    """
    found = _measure(gradients, tau, decay, fractions, len(gradients[0]))
    probability = saturated(found.values, found.expected)
    (rows,) = torch.nonzero(torch.rand_like(probability) < probability, as_tuple=True)
    # The host has just waited for the number of rows: these are ready.
    largest, new_tau = torch.stack([found.peak, tau.to(found.peak.dtype)]).tolist()
    finite = largest < float("inf")  # which a number that is none is not
    if not finite:
        return Drawn(None, None, new_tau, False)
    if largest == 0:
        return Drawn(rows[:0], None, new_tau, True)
    return Drawn(rows, probability[rows].reciprocal(), new_tau, True)


def draw_padded(
    gradients: Sequence[Tensor],
    tau: Tensor,
    decay: float,
    fractions: tuple[float, float],
    rule: MiningRule,
    padded: Padded,
    heads: MiningHeads = "together",
) -> tuple[Tensor, Tensor]:
    """Draw rows by a rule, advance tau in place, and say what was done in `padded.report`.

    Args:
        gradients: of each output, [C, ...] with C > 0, before the activations.
        tau: [] on the same device.
        decay: of tau's running mean.
        fractions: least and greatest b / B.
        rule: not "off".
        padded: how many of the rows there are, and how many to return.
        heads: separate: for each output by itself, with the rule "poisson" or "systematic", without the kernels.

    Returns:
        (rows [most] int64, weights [most]): 0 for rows that were not drawn, or if all gradients are 0; not a number if
        one of them is not finite, so that a gradient scaler sees it.
    """
    flat = flattened(gradients)
    if rule == "poisson" and heads == "together" and tau.is_cuda:
        gpu = triton_module("hardmine_ns.mining.gpu", "Mining on a GPU")
        if gpu.fits(flat, padded):
            # The generator's seed is the step's (`streams.seed_step`), and the host knows it.
            seed = (torch.initial_seed() ^ _APART) & _SEEDS
            found: tuple[Tensor, Tensor] = gpu.draw(flat, tau, decay, fractions, padded, seed)
            return found
    return _draw_padded(gradients, tau, decay, fractions, rule, padded, heads)


def _draw_padded(
    gradients: Sequence[Tensor],
    tau: Tensor,
    decay: float,
    fractions: tuple[float, float],
    rule: MiningRule,
    padded: Padded,
    heads: MiningHeads = "together",
) -> tuple[Tensor, Tensor]:
    """The same in PyTorch, on any device, with random numbers of PyTorch's."""
    found = _measure(gradients, tau, decay, fractions, padded.count)
    number = torch.arange(padded.most, device=tau.device)
    if rule in WEIGHTED:
        if heads == "together":
            probability = saturated(found.values, found.expected)
        else:  # what is senseless is not drawn by, as in `_measure`
            own = torch.where(found.good, of_heads(gradients), 1.0)
            probability = union_probabilities(own, found.expected.to(own.dtype))
        drawn = drawn_with(probability, rule)
        behind = drawn.cumsum(0)
        # What is not drawn goes to a place behind all.
        place = torch.where(drawn, (behind - 1).clamp(max=padded.most), padded.most)
        rows = torch.zeros(padded.most + 1, dtype=torch.int64, device=tau.device)
        rows = rows.scatter_(0, place, torch.arange(len(drawn), device=tau.device))[: padded.most]
        total = behind[-1]
        weights = torch.where(number < total, probability[rows].reciprocal(), 0.0)
    else:
        key = found.values
        if rule == "multinomial":  # an exponential race, as in `selection.select_rows`
            key = key / torch.empty_like(key).exponential_()
        largest, rows = key.topk(padded.most)
        chosen = (number < found.expected.round()) & (largest > 0)
        total, weights = chosen.sum(), chosen.to(key.dtype)
    finite = found.peak.isfinite()
    weights = torch.where(found.good, weights, torch.where(finite, 0.0, torch.nan))
    total = torch.where(found.good, total, torch.where(finite, 0, padded.count))
    padded.report.copy_(torch.stack([value.to(torch.float64) for value in (padded.count, total, tau, finite)]))
    return rows, weights


def _measure(
    gradients: Sequence[Tensor], tau: Tensor, decay: float, fractions: tuple[float, float], count: int | Tensor
) -> _Hardness:
    """Hardness of rows, of which there are `count`; tau is advanced in place."""
    flat = flattened(gradients)
    peak = torch.stack([g.abs().amax().to(torch.float64) for g in flat]).amax()
    good = peak.isfinite() & (peak > 0)
    unit = torch.where(good, peak, 1.0)
    squares = torch.stack([(g / unit.to(g.dtype)).square().sum(-1) for g in flat]).sum(0)
    values = torch.where(good, squares.sqrt(), 1.0)
    share = values / values.sum()
    concentration = count * share.square().sum()
    # 1 is where it starts: as in `HardSampleMining`.
    rate = torch.where(tau > 1, 1 - decay, 1.0).to(tau.dtype)
    tau.copy_(torch.where(good, torch.lerp(tau, concentration.sqrt().to(tau.dtype), rate), tau))
    return _Hardness(values, peak, good, (count * (1 / tau).clamp(*fractions)).clamp_min(1))
