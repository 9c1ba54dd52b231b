"""Draws for each head by itself, checked against the full backward pass. Needs torch only."""

import math

import pytest
import torch
from mined_field import ROWS, assert_equal, full_gradients, mined_gradients
from torch import Tensor

from hardmine_ns.mining import HardSampleMining


@pytest.mark.parametrize("rule", ["poisson", "systematic"])
def test_separate_heads_are_unbiased_and_draw_as_many_rows(field, x, rule):
    """Also where the heads disagree on what is hard, and one's gradient is a million times the other's."""

    def loss(outputs: tuple[Tensor, ...]) -> Tensor:
        density, color = outputs
        falling = (0.97 ** torch.arange(len(density), dtype=density.dtype))[:, None]
        return 1e6 * (falling * density.square()).sum() + (falling.flip(0) * (color - 0.3).square()).sum()

    def draws(heads: str) -> tuple[Tensor, Tensor]:
        mining, found, numbers = HardSampleMining(rule, 0.15, 0.15, heads=heads), [], []
        for seed in range(150):
            torch.manual_seed(seed)
            found.append([g.flatten() for g in mined_gradients(field, x, mining, loss)])
            numbers.append(mining.statistics.selected)
        return [torch.stack(each) for each in zip(*found, strict=True)], torch.tensor(numbers, dtype=torch.float64)

    full = [g.flatten() for g in full_gradients(field, x, loss)]
    separate, numbers = draws("separate")
    for of_parameter, exact in zip(separate, full, strict=True):
        error = of_parameter @ exact / exact.square().sum() - 1
        assert abs(error.mean()) < 4 * error.std() / math.sqrt(150)
    assert numbers.mean() == pytest.approx(round(0.15 * ROWS), abs=4 * float(numbers.std()) / math.sqrt(150) + 0.5)
    # The colour head's own parameters: drawn for the density, their gradient is a gamble.
    together, _ = draws("together")
    names = [name for name, _ in field.named_parameters()]
    index = names.index("color.weight")
    spread, gamble = ((each[index] - full[index]).square().sum(1).mean() for each in (separate, together))
    assert spread < 0.2 * gamble


def test_separate_heads_need_a_rule_with_weights(field, x):
    for rule in ("multinomial", "topk", "off"):
        with pytest.raises(ValueError, match=f"with separate mining heads the mining rule must be .* got '{rule}'"):
            HardSampleMining(rule, heads="separate")
    with pytest.raises(ValueError, match=r"mining heads must be one of .* got 'two'"):
        HardSampleMining(heads="two")
    mining = HardSampleMining(heads="separate")
    assert mining.rules == ("poisson", "systematic", "off")
    with pytest.raises(ValueError, match=r"mining rule must be one of .* got 'topk'"):
        mining.request("topk", 0.1, 0.2)
    mining.request("off", 0.1, 0.2)  # as a pause
    mining.begin_step()
    assert_equal(mined_gradients(field, x, mining), full_gradients(field, x))
