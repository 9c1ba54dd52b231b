"""Which rows are drawn, and with which probability."""

import pytest
import torch

from hardmine_ns.mining import poisson_probabilities, select_rows
from hardmine_ns.mining.selection import drawn_with
from ns_support.concurrency.processes import Processes


@pytest.mark.parametrize("rule", ["poisson", "systematic", "multinomial", "topk"])
def test_fewer_hard_rows_than_wanted(rule):
    hardness = torch.zeros(100, dtype=torch.float64)
    hardness[[3, 70]] = torch.tensor([1.0, 1e-6], dtype=torch.float64)
    assert torch.equal(poisson_probabilities(hardness, 40), (hardness > 0).to(torch.float64))
    rows, weights = select_rows(hardness, 40, rule)
    assert sorted(rows.tolist()) == [3, 70]
    assert weights is None or torch.equal(weights, torch.ones(2, dtype=torch.float64))


def test_multinomial_draws_in_proportion():
    torch.manual_seed(0)
    hardness = torch.tensor([1.0, 2.0, 5.0])
    first = torch.stack([select_rows(hardness, 1, "multinomial")[0] for _ in range(4000)]).flatten()
    assert torch.bincount(first, minlength=3) / 4000 == pytest.approx([0.125, 0.25, 0.625], abs=0.03)


@pytest.mark.parametrize("rule", ["poisson", "systematic"])
def test_rows_are_drawn_with_their_probabilities(rule):
    torch.manual_seed(0)
    probability = torch.cat([torch.rand(40), torch.tensor([0.0, 1.0, 1.0, 0.0])])
    drawn = torch.stack([drawn_with(probability, rule) for _ in range(4000)])
    assert torch.allclose(drawn.float().mean(0), probability, atol=0.035)
    assert drawn[:, probability == 1].all()
    assert not drawn[:, probability == 0].any()
    number = drawn.sum(1)
    assert number.float().mean().item() == pytest.approx(probability.sum().item(), abs=0.2)
    assert (number - probability.sum()).abs().max() < 1 if rule == "systematic" else number.float().std() > 2


def test_systematic_draws_are_spread_over_the_rows():
    drawn = torch.stack([drawn_with(torch.full((1000,), 0.1), "systematic") for _ in range(20)])
    for row in drawn:
        assert set(row.nonzero()[:, 0].diff().tolist()) <= {9, 10, 11}  # rounding of 0.1 in float32
    assert len({int(row.nonzero()[0]) for row in drawn}) > 5


@pytest.mark.parametrize("expected", [1, 30, 500, 999])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_poisson_probabilities_sum_to_the_wanted_count(expected, spread):
    torch.manual_seed(0)
    hardness = torch.exp(spread * torch.randn(1000, dtype=torch.float64))
    probability = poisson_probabilities(hardness, expected)
    assert (probability >= 0).all()
    assert (probability <= 1).all()
    assert probability.sum().item() == pytest.approx(expected, rel=0.02)
    free = probability < 1
    ratio = probability[free] / hardness[free]
    assert ratio.max().item() == pytest.approx(ratio.min().item(), rel=1e-9)


def test_inclusion_probabilities_of_a_divided_batch(run_processes):
    hardness = torch.rand(500, generator=torch.Generator().manual_seed(0)) ** 8  # some are certain
    whole = poisson_probabilities(hardness, 100.0)
    assert (whole == 1).any()

    def work(rank):
        return poisson_probabilities(hardness[:50] if rank == 0 else hardness[50:], 100.0, Processes.current())

    torch.testing.assert_close(torch.cat(run_processes(work)), whole)


def test_a_rule_without_a_draw_is_refused():
    with pytest.raises(ValueError, match="rows can't be drawn by the rule 'off'"):
        select_rows(torch.ones(3), 2, "off")
