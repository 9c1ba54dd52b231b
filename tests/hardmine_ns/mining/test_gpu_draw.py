"""The kernels of the draw: in Triton's interpreter by the law of the one in PyTorch, and built for absent GPUs."""

import pytest
import torch

from hardmine_ns.mining.on_gpu import Padded, _draw_padded, _measure, saturated

pytest.importorskip("triton")

FRACTIONS = (0.05, 0.5)
ROWS, BEHIND = 1100, 300
"""Rows that exist, in two blocks; and those behind them."""


@pytest.fixture
def gradients():
    """Of a few hard rows, of many that are less so, and of some without any."""
    torch.manual_seed(0)
    hard = torch.rand(ROWS, 1) ** 4
    hard[::7] = 0
    hard = torch.cat([hard, torch.zeros(BEHIND, 1)])
    return [torch.randn(ROWS + BEHIND, 1) * hard, torch.randn(ROWS + BEHIND, 3) * hard]


def drawn(gradients, tau, seed=1, most=960):
    from hardmine_ns.mining.gpu import draw

    padded = Padded(torch.tensor(ROWS), most, torch.zeros(4, dtype=torch.float64))
    rows, weights = draw(gradients, tau, 0.9, FRACTIONS, padded, seed)
    return rows, weights, padded.report.tolist()


@pytest.mark.interpreted
@pytest.mark.parametrize(("power", "scale"), [(1, 1.0), (1, 1e30), (8, 1e-30)])
def test_probabilities_and_tau_are_those_of_the_other(power, scale, gradients):
    gradients = [g.sign() * g.abs() ** power * scale for g in gradients]
    tau, same = torch.tensor(1.0), torch.tensor(1.0)
    for number in range(2):
        rows, weights, (count, total, found_tau, finite) = drawn(gradients, tau, seed=number)
        wanted = _measure([g / scale for g in gradients], same, 0.9, FRACTIONS, torch.tensor(ROWS))
        assert found_tau == pytest.approx(float(same), rel=1e-5) == pytest.approx(float(tau), rel=1e-5)
        assert (count, finite) == (ROWS, 1)
        own = rows[weights > 0]
        assert total == len(own) == len(own.unique()) > 20
        assert torch.equal(own, own.sort().values)
        assert own.max() < ROWS
        assert not rows[int(total) :].any()
        assert not weights[int(total) :].any()
        probability = saturated(wanted.values, wanted.expected)
        torch.testing.assert_close(weights[: int(total)], probability[own].reciprocal(), rtol=2e-3, atol=0)
        # As many as expected, give or take.
        spread = float((probability * (1 - probability)).sum().sqrt())
        assert abs(total - float(probability.sum())) < 4 * spread + 1


@pytest.mark.interpreted
def test_sums_are_right_in_the_mean(gradients):
    """With the variance that independent draws have: sum of (1 / pi - 1) g^2."""
    wanted = _measure(gradients, torch.ones(()), 0.9, FRACTIONS, torch.tensor(ROWS))
    probability = saturated(wanted.values, wanted.expected)
    few = gradients[0][:, 0].square() * (1 / probability.clamp(min=1e-9) - 1)
    spread = float(few[probability > 0].sum().sqrt())
    off = []
    for seed in range(6):
        rows, weights, _ = drawn(gradients, torch.ones(()), seed=1000 + seed)
        off.append(float((gradients[0][rows, 0] * weights).sum() - gradients[0].sum()) / spread)
    off = torch.tensor(off)
    assert abs(float(off.mean())) < 4 / 6**0.5
    assert 0.2 < float(off.square().mean()) < 3.5
    assert len(off.unique()) == 6


@pytest.mark.interpreted
def test_the_draw_does_not_depend_on_the_room(gradients):
    rows, weights, report = drawn(gradients, torch.ones(()))
    shorter = [g[: ROWS + 10] for g in gradients]
    again, same, again_report = drawn(shorter, torch.ones(()), most=640)
    assert report == again_report
    assert torch.equal(rows[: int(report[1])], again[: int(report[1])])
    torch.testing.assert_close(weights[: int(report[1])], same[: int(report[1])], rtol=1e-6, atol=0)
    rows, weights, report = drawn(gradients, torch.ones(()), most=64)
    assert report == again_report
    assert (weights > 0).all()


@pytest.mark.interpreted
def test_nothing_and_what_is_not_finite(gradients):
    tau = torch.tensor(3.0)
    rows, weights, report = drawn([torch.zeros_like(g) for g in gradients], tau)
    assert not rows.any()
    assert not weights.any()
    assert report == [ROWS, 0, 3, 1]
    for bad in (torch.inf, torch.nan):
        gradients[1][7, 2] = bad
        _, weights, report = drawn(gradients, tau)
        assert weights.isnan().all()
        assert report == [ROWS, ROWS, 3, 0]
    assert float(tau) == 3.0


@pytest.mark.interpreted
def test_fewer_hard_rows_than_wanted_are_all_drawn(gradients):
    few = [torch.zeros_like(g) for g in gradients]
    few[0][3:40] = torch.rand(37, 1) + 0.5
    rows, weights, report = drawn(few, torch.ones(()))
    other = _draw_padded(few, torch.ones(()), 0.9, FRACTIONS, "poisson", Padded(torch.tensor(ROWS), 64, torch.zeros(4)))
    assert report[1] == 37
    assert rows[:37].tolist() == other[0][:37].tolist() == list(range(3, 40))
    assert weights[:37].tolist() == [1.0] * 37


TYPES = dict.fromkeys(["first", "second", "values", "weights", "tau"], "*fp32")
TYPES |= dict.fromkeys(["partial", "bracket", "refine", "out", "settled", "report"], "*fp64")
TYPES |= {"counts": "*i32", "count": "*i64", "indices": "*i64"}
TYPES |= dict.fromkeys(["rows", "blocks", "most", "seed"], "i32") | dict.fromkeys(
    ["decay", "least", "greatest"], "fp32"
)


@pytest.mark.parametrize("name", ["measure_kernel", "sums_kernel", "count_kernel", "write_kernel"])
def test_builds_without_spilling(name, capability, triton_build):
    from hardmine_ns.mining import gpu

    constants = {"BLOCK": 1024, "MANY": 512, "SECOND": True, "A": 1, "B": 3}
    kernel = getattr(gpu, name)
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    build = triton_build(kernel, TYPES, constants, capability, 4)
    assert build.spilled <= 16
    assert build.registers <= 128
