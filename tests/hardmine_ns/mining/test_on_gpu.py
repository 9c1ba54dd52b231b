"""The draw that a GPU makes, on a CPU: the same law as the one step by step."""

import pytest
import torch

from hardmine_ns.mining import HardSampleMining
from hardmine_ns.mining.on_gpu import Padded, draw_padded, draw_poisson, most_drawn, saturated
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
    few = torch.cat([values, torch.zeros(3000)])
    assert saturated(few, torch.tensor(1500.0)).tolist() == [0.0, 1.0, 0.0, 1.0, 1.0] + [0.0] * 3000
    assert saturated(values, torch.tensor(1.0)).tolist() == pytest.approx([0.0, 0.5, 0.0, 1 / 6, 1 / 3])


# ---- of rows of which the host does not know how many there are ----

BEHIND = 140
"""Rows behind those that exist."""


def padded_draw(gradients, tau, rule="poisson", most=400, fractions=FRACTIONS, heads="together"):
    """Rows, weights and report of a draw among gradients that are followed by rows of zeros."""
    count = torch.tensor(len(gradients[0]))
    longer = [torch.cat([g, g.new_zeros(BEHIND, *g.shape[1:])]) for g in gradients]
    padded = Padded(count, most, torch.zeros(4, dtype=torch.float64))
    rows, weights = draw_padded(longer, tau, 0.9, fractions, rule, padded, heads)
    assert rows.shape == weights.shape == (most,)
    return rows, weights, padded.report.tolist()


def test_a_padded_draw_follows_the_law_of_the_other(gradients):
    tau, same = torch.ones(()), torch.ones(())
    for _ in range(4):
        drawn = draw_poisson(gradients, tau, 0.9, FRACTIONS)
        rows, weights, (count, number, found_tau, finite) = padded_draw(gradients, same)
        assert found_tau == pytest.approx(drawn.tau, rel=1e-6) == pytest.approx(float(same), rel=1e-6)
        assert (count, finite) == (500, 1)
        own = rows[weights > 0]
        assert number == len(own) == len(own.unique()) == pytest.approx(len(drawn.rows), abs=60)
        assert own.max() < 500
        assert torch.equal(own, own.sort().values)
        assert torch.equal(weights > 0, torch.arange(400) < number)
        theirs = dict(zip(drawn.rows.tolist(), drawn.weights.tolist(), strict=True))
        shared = [row for row in own.tolist() if row in theirs]
        assert len(shared) > 20
        ours = dict(zip(own.tolist(), weights[weights > 0].tolist(), strict=True))
        assert [ours[row] for row in own.tolist() if row in theirs] == pytest.approx(
            [theirs[row] for row in shared], rel=1e-5
        )


def test_sums_of_padded_draws_are_right_in_the_mean(gradients):
    found = []
    for _ in range(400):
        rows, weights, _ = padded_draw(gradients, torch.ones(()))
        longer = torch.cat([gradients[0], torch.zeros(BEHIND)])
        found.append(float((longer[rows] * weights).sum()))
    found = torch.tensor(found)
    assert abs(float(found.mean() - gradients[0].sum())) < 4 * float(found.std()) / 20


@pytest.mark.parametrize("rule", ["poisson", "systematic"])
def test_separate_padded_draws_follow_the_law_of_the_others(rule, gradients):
    mining, tau, numbers = HardSampleMining(rule, *FRACTIONS, heads="separate"), torch.ones(()), []
    for _ in range(20):
        theirs, their_weights = mining.choose(gradients)
        rows, weights, (count, number, found_tau, finite) = padded_draw(gradients, tau, rule, heads="separate")
        assert found_tau == pytest.approx(mining.statistics.tau, rel=1e-6)
        assert (count, finite) == (500, 1)
        own = rows[weights > 0]
        assert number == len(own) == len(own.unique())
        assert own.max() < 500
        ours = dict(zip(own.tolist(), weights[weights > 0].tolist(), strict=True))
        shared = {row: w for row, w in zip(theirs.tolist(), their_weights.tolist(), strict=True) if row in ours}
        assert len(shared) > 10
        assert all(ours[row] == pytest.approx(w, rel=0.02) for row, w in shared.items())
        numbers.append(number)
    assert sum(numbers) / 20 == pytest.approx(500 * min(0.5, 1 / mining.statistics.tau), abs=12)


def test_separate_padded_draws_of_nothing_and_of_what_is_not_finite(gradients):
    tau = torch.tensor(3.0)
    _, weights, report = padded_draw([torch.zeros_like(g) for g in gradients], tau, heads="separate")
    assert not weights.any()
    assert report == [500, 0, 3, 1]
    gradients[1][7, 2] = torch.nan
    _, weights, report = padded_draw(gradients, tau, heads="separate")
    assert weights.isnan().all()
    assert report == [500, 500, 3, 0]


@pytest.mark.parametrize("rule", ["topk", "multinomial"])
def test_other_rules_draw_as_many_rows_as_they_do_elsewhere(rule, gradients):
    mining, tau = HardSampleMining(rule, *FRACTIONS), torch.ones(())
    for _ in range(3):
        wanted, _ = mining.choose(gradients)
        rows, weights, report = padded_draw(gradients, tau, rule)
        own = rows[weights > 0]
        assert len(own) == report[1] == len(wanted)
        assert own.max() < 500
        if rule == "topk":
            assert own.sort().values.tolist() == wanted.sort().values.tolist()


def test_padded_draws_of_nothing_and_of_what_is_not_finite(gradients):
    tau = torch.tensor(3.0)
    _, weights, report = padded_draw([torch.zeros_like(g) for g in gradients], tau)
    assert not weights.any()
    assert report == [500, 0, 3, 1]
    gradients[1][7, 2] = torch.inf
    _, weights, report = padded_draw(gradients, tau)
    assert weights.isnan().all()
    assert report == [500, 500, 3, 0]
    assert float(tau) == 3.0


def test_more_rows_than_there_is_room_for_are_said(gradients):
    rows, weights, report = padded_draw(gradients, torch.ones(()), most=20)
    assert (weights > 0).all()
    assert len(rows.unique()) == 20 < report[1]


@pytest.mark.parametrize("start", [1.0, 1.5, 4.0, 40.0])
def test_there_is_room_for_what_a_draw_two_steps_later_takes(start):
    """Even if all rows are as hard as each other, so that tau falls as fast as it can."""
    torch.manual_seed(0)
    even, tau = [torch.ones(4000)], torch.tensor(start)
    most = most_drawn(4000, FRACTIONS, 0.9, start)
    assert most % 64 == 0 or most == 4000
    for _ in range(2):
        report = padded_draw(even, tau, most=4000)[2]
    assert report[1] <= most <= 1.4 * report[1] + 64
    assert most_drawn(4000, FRACTIONS, 0.9, None) >= 2000
    assert most_drawn(100, (0.05, 1.0), 0.9, None) == 100


def test_a_mined_field_of_padded_rows():
    """Gradients of parameters and of inputs come from the rows that exist, each with its weight."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(3, 2, bias=False), torch.randn(300, 3)
    of_rows = torch.randn(300, 2) * torch.rand(300, 1) ** 4
    of_rows[200:] = 0
    sums, of_inputs = [], []
    for _ in range(300):
        mining, inputs = HardSampleMining("poisson", *FRACTIONS), x.clone().requires_grad_()
        padded = Padded(torch.tensor(200), 160, torch.zeros(4, dtype=torch.float64))
        (y,) = mining(lambda rows: (layer(rows),), layer.parameters(), (inputs,), padded=padded)
        layer.zero_grad()
        y.backward(of_rows)
        sums.append(layer.weight.grad.clone())
        of_inputs.append(inputs.grad)
        assert padded.report[0] == 200
        assert not inputs.grad[200:].any()
    found, exact = torch.stack(sums), of_rows.T @ x
    assert ((found.mean(0) - exact).abs() < 4 * found.std(0) / 300**0.5).all()
    found, exact = torch.stack(of_inputs), (of_rows @ layer.weight).detach()
    assert (found.mean(0) - exact).square().sum() < 2 * found.var(0).sum() / 300
