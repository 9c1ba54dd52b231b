"""The draw of rows where gradients are on a GPU: the same as `mining.api` does step by step, with one wait.

The host learns three numbers together with how many rows were drawn, and decides afterwards. Until then the GPU works
with what it has, be it senseless: a gradient that is not finite, or none at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hardmine_ns.mining.hardness import flattened


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
    scales = left / rest.clamp_min(torch.finfo(rest.dtype).tiny)
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
    flat = flattened(gradients)
    peak = torch.stack([g.abs().amax().to(torch.float64) for g in flat]).amax()
    good = peak.isfinite() & (peak > 0)
    unit = torch.where(good, peak, 1.0)
    squares = torch.stack([(g / unit.to(g.dtype)).square().sum(-1) for g in flat]).sum(0)
    values = torch.where(good, squares.sqrt(), 1.0)
    share = values / values.sum()
    concentration = len(values) * share.square().sum()
    # 1 is where it starts: as in `HardSampleMining`.
    rate = torch.where(tau > 1, 1 - decay, 1.0).to(tau.dtype)
    tau.copy_(torch.where(good, torch.lerp(tau, concentration.sqrt().to(tau.dtype), rate), tau))
    expected = (len(values) * (1 / tau).clamp(*fractions)).clamp_min(1)
    probability = saturated(values, expected)
    (rows,) = torch.nonzero(torch.rand_like(probability) < probability, as_tuple=True)
    # The host has just waited for the number of rows: these are ready.
    largest, new_tau = torch.stack([peak, tau.to(peak.dtype)]).tolist()
    finite = largest < float("inf")  # which a number that is none is not
    if not finite:
        return Drawn(None, None, new_tau, False)
    if largest == 0:
        return Drawn(rows[:0], None, new_tau, True)
    return Drawn(rows, probability[rows].reciprocal(), new_tau, True)
