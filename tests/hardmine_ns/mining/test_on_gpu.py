"""The draw that a GPU makes, on a CPU: the same law as the one step by step."""

import pytest
import torch

from hardmine_ns.mining import HardSampleMining
from hardmine_ns.mining.on_gpu import draw_poisson, saturated
from hardmine_ns.mining.selection import poisson_probabilities

FRACTIONS = (0.05, 0.5)


@pytest.fixture
def gradients():
    torch.manual_seed(0)
    return [torch.randn(500) * torch.rand(500) ** 4, torch.randn(500, 3) * torch.rand(500, 1) ** 4]


def test_tau_and_the_number_of_rows_follow_the_same_law(gradients):
    mining, tau = HardSampleMining("poisson", *FRACTIONS), torch.ones(())
    for _ in range(4):
        rows, weights = mining.choose(gradients)
        drawn = draw_poisson(gradients, tau, mining.decay, FRACTIONS)
        assert drawn.tau == pytest.approx(mining.statistics.tau, rel=1e-6) == pytest.approx(float(tau), rel=1e-6)
        assert drawn.finite
        assert len(drawn.rows) == pytest.approx(len(rows), abs=40)
        # The same probabilities, but for the rounding of b: rows that both drew have the same weights.
        theirs = dict(zip(rows.tolist(), weights.tolist(), strict=True))
        ours = dict(zip(drawn.rows.tolist(), drawn.weights.tolist(), strict=True))
        shared = theirs.keys() & ours.keys()
        assert len(shared) > 20
        assert all(ours[row] == pytest.approx(theirs[row], rel=0.02) for row in shared)


def test_sums_are_right_in_the_mean(gradients):
    found = []
    for _ in range(400):
        drawn = draw_poisson(gradients, torch.ones(()), 0.9, FRACTIONS)
        found.append(float((gradients[0][drawn.rows] * drawn.weights).sum()))
    found = torch.tensor(found)
    assert abs(float(found.mean() - gradients[0].sum())) < 4 * float(found.std()) / 20


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_takes_all_rows_and_leaves_tau(bad, gradients):
    gradients[1][7, 2] = bad
    tau = torch.tensor(3.0)
    assert draw_poisson(gradients, tau, 0.9, FRACTIONS) == (None, None, 3.0, False)
    assert float(tau) == 3.0


def test_no_gradient_takes_no_row_and_leaves_tau(gradients):
    tau = torch.tensor(3.0)
    drawn = draw_poisson([torch.zeros_like(g) for g in gradients], tau, 0.9, FRACTIONS)
    assert len(drawn.rows) == 0
    assert drawn[1:] == (None, 3.0, True)


@pytest.mark.parametrize("power", [1, 6, 12])
@pytest.mark.parametrize("expected", [1.0, 25.0, 300.5])
def test_probabilities_are_those_of_the_rounds_and_sum_to_b(power, expected):
    torch.manual_seed(0)
    values = torch.rand(600) ** power
    found = saturated(values, torch.tensor(expected))
    assert float(found.sum()) == pytest.approx(expected, rel=1e-4)
    if power < 12:  # the rounds stop after eight
        wanted = poisson_probabilities(values, expected)
        assert float((found - wanted).abs().max()) < 1e-3
    scaled = found[found < 1] / values[found < 1]
    assert float(scaled.max() - scaled.min()) <= 1e-3 * float(scaled.max())


def test_fewer_hard_rows_than_wanted_are_all_drawn():
    values = torch.tensor([0.0, 3.0, 0.0, 1.0, 2.0])
    assert saturated(values, torch.tensor(4.0)).tolist() == [0.0, 1.0, 0.0, 1.0, 1.0]
    assert saturated(values, torch.tensor(1.0)).tolist() == pytest.approx([0.0, 0.5, 0.0, 1 / 6, 1 / 3])
