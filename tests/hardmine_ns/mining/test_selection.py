"""Which rows are drawn, and with which probability."""

import pytest
import torch

from hardmine_ns.mining import poisson_probabilities, select_rows, union_probabilities
from hardmine_ns.mining.hardness import of_heads
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


# ---- rows drawn for each head separately ----


def two_heads(spread: float = 2.0, rows: int = 1000) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.exp(spread * torch.randn(2, rows, dtype=torch.float64))


@pytest.mark.parametrize("expected", [1, 30, 500, 999])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_union_has_the_wanted_number_of_rows_and_one_scale(expected, spread):
    heads = two_heads(spread)
    probability = union_probabilities(heads, expected)
    assert probability.sum().item() == pytest.approx(expected, rel=0.02)
    shares = heads / heads.sum(1, keepdim=True)
    low, high = 0.0, 1e12
    for _ in range(200):  # the scale by halving intervals
        scale = (low + high) / 2
        density, color = (scale * shares).clamp(max=1)
        found = 1 - (1 - density) * (1 - color)
        low, high = (scale, high) if found.sum() < expected else (low, scale)
    if expected < 999:  # there, eight rounds leave the last rows short
        torch.testing.assert_close(probability, found, rtol=1e-3, atol=1e-6)


def test_one_head_draws_as_all_together_and_an_idle_one_draws_nothing():
    hardness = two_heads()[0]
    expected = poisson_probabilities(hardness, 100)
    torch.testing.assert_close(union_probabilities(hardness[None], 100), expected)
    idle = torch.stack([torch.zeros_like(hardness), hardness])
    torch.testing.assert_close(union_probabilities(idle, 100), expected, rtol=1e-3, atol=0)


def test_small_probabilities_are_not_rounded_away():
    heads = torch.ones(2, 100)
    heads[:, 0] = 1e-12
    probability = union_probabilities(heads, 10)
    assert probability[0].item() == pytest.approx(probability[1].item() * 1e-12, rel=0.06)


def test_rows_that_are_drawn_for_any_head():
    """The frequencies of two independent draws of which either suffices."""
    torch.manual_seed(0)
    heads = two_heads(1.0, 40)
    probability = union_probabilities(heads, 15)
    # The scale, from a row that is certain for neither.
    shares = heads / heads.sum(1, keepdim=True)
    a, b = shares[:, probability.argmin()].tolist()
    sought = float(probability.min())
    scale = ((a + b) - ((a + b) ** 2 - 4 * a * b * sought) ** 0.5) / (2 * a * b)
    own = (scale * shares).clamp(max=1)
    drawn = torch.stack([(torch.rand_like(own) < own).any(0) for _ in range(4000)])
    assert torch.allclose(drawn.double().mean(0), probability, atol=0.035)
    found = torch.zeros(40)
    for _ in range(2000):
        rows, weights = select_rows(heads[0], 15, "poisson", heads=heads)
        torch.testing.assert_close(weights, 1 / probability[rows])
        found[rows] += 1 / 2000
    assert torch.allclose(found.double(), probability, atol=0.05)


@pytest.mark.parametrize("rule", ["poisson", "systematic"])
def test_fewer_rows_than_wanted_are_hard_for_any_head(rule):
    heads = torch.zeros(2, 100, dtype=torch.float64)
    heads[0, 3], heads[1, 70], heads[:, 8] = 1.0, 1e-6, 1.0
    rows, weights = select_rows(heads[0], 40, rule, heads=heads)
    assert sorted(rows.tolist()) == [3, 8, 70]
    assert torch.equal(weights, torch.ones(3, dtype=torch.float64))


def test_each_heads_hardness_is_its_own():
    density, color = torch.tensor([1e-25, -2e-25]), torch.tensor([[3.0, 4.0], [0.0, 4.0]])
    found = of_heads([density, color, torch.zeros(2, 3)])
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.0], [1.25, 1.0], [0.0, 0.0]]))
    assert of_heads([density[:0], color[:0]]).shape == (2, 0)


def test_separate_draws_of_a_divided_batch(run_processes):
    heads = two_heads(3.0, 500)
    whole = union_probabilities(heads, 100.0)
    assert (whole > 0.999).any()

    def work(rank):
        own = slice(500) if rank == 0 else slice(0)  # one has none
        part = of_heads(list(heads[:, own]), Processes.current())
        return union_probabilities(part, 100.0, Processes.current())

    torch.testing.assert_close(torch.cat(run_processes(work)), whole)
