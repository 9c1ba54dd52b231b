"""Mining, checked against the full backward pass. Needs torch only."""

import math

import pytest
import torch
from mined_field import ROWS, TwoHeads, assert_equal, concentrated_loss, full_gradients, gradients, mined_gradients
from torch import Tensor

from hardmine_ns.mining import HardSampleMining, told, undo_activations
from ns_support.concurrency.processes import Processes


@pytest.mark.parametrize("rule", ["poisson", "systematic", "multinomial", "topk", "off"])
def test_fraction_one_reproduces_plain_gradients(field, x, rule):
    mining = HardSampleMining(rule, min_fraction=1, max_fraction=1)
    assert_equal(mined_gradients(field, x, mining), full_gradients(field, x))


@pytest.mark.parametrize("rule", ["poisson", "systematic", "multinomial", "topk", "off"])
def test_forward_is_the_field(field, x, rule):
    with torch.no_grad():
        expected = field(x)
    outputs = HardSampleMining(rule)(field, field.parameters(), (x,))
    for a, e in zip(outputs, expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("rule", ["poisson", "systematic", "multinomial", "topk"])
def test_subset_equals_masked_full_gradient(field, x, rule, monkeypatch):
    mining = HardSampleMining(rule, min_fraction=0.2, max_fraction=0.2)
    drawn = []
    choose = mining.choose
    monkeypatch.setattr(mining, "choose", lambda g: drawn.append(choose(g)) or drawn[-1])
    actual = mined_gradients(field, x, mining)
    rows, weights = drawn[0]
    assert 0 < len(rows) < ROWS
    assert (weights is None) == (rule in ("multinomial", "topk"))

    outputs = field(x)
    mask = torch.zeros(ROWS, 1, dtype=torch.float64)
    mask[rows, 0] = 1 if weights is None else weights
    cotangents = torch.autograd.grad(concentrated_loss(outputs), outputs, retain_graph=True)
    torch.autograd.backward(outputs, [mask * c for c in cotangents])
    assert_equal(actual, gradients(field))
    assert field.rows_seen[1] == len(rows)  # the second run saw the subset only


def test_unbiased_mean_over_seeds_is_the_full_gradient(field, x):
    """Bias within four standard errors, while a biased rule fails the same check."""
    full = torch.cat([g.flatten() for g in full_gradients(field, x)])

    def bias_in_standard_errors(rule: str) -> float:
        mining = HardSampleMining(rule, min_fraction=0.15, max_fraction=0.15)
        draws = []
        for seed in range(150):
            torch.manual_seed(seed)
            draws.append(torch.cat([g.flatten() for g in mined_gradients(field, x, mining)]))
        error = torch.stack(draws) @ full / full.square().sum() - 1  # along the full gradient
        return abs(error.mean() / (error.std() / math.sqrt(len(draws)) + 1e-12)).item()

    assert bias_in_standard_errors("poisson") < 4
    assert bias_in_standard_errors("systematic") < 4
    assert bias_in_standard_errors("multinomial") > 10


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_saved_bytes_follow_the_rows_drawn(field, fraction):
    x = torch.randn(4000, 3, dtype=torch.float64)
    parameters = {p.data_ptr() for p in field.parameters()}

    def saved_bytes(run) -> int:
        total = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal total
            total += 0 if t.untyped_storage().data_ptr() in parameters else t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            run()
        return total

    def rerun_only() -> None:
        mining = HardSampleMining("topk", min_fraction=fraction, max_fraction=fraction)
        outputs = mining(field, field.parameters(), (x,))
        torch.autograd.backward(outputs, [torch.rand_like(y) + 0.1 for y in outputs])

    full = saved_bytes(lambda: field(x))
    inputs_once = x.nbytes  # kept for the second run
    assert saved_bytes(rerun_only) == pytest.approx(inputs_once + fraction * full, rel=0.02)


def test_tau_is_the_coefficient_of_variation_and_sets_the_fraction():
    hardness = torch.cat([torch.full((100,), 9.0), torch.ones(900)]).double()
    expected = math.sqrt(1 + (hardness.std(correction=0) / hardness.mean()).item() ** 2)
    mining = HardSampleMining("topk", min_fraction=0.01, max_fraction=1.0, decay=0.0)
    rows, _ = mining.choose([hardness[:, None]])
    assert mining.statistics.tau == pytest.approx(expected, rel=1e-6)
    assert len(rows) == round(1000 / expected)
    slow = HardSampleMining("topk")
    slow.choose([hardness[:, None]])
    assert slow.statistics.tau == pytest.approx(expected, rel=1e-6)  # its first value
    slow.choose([torch.ones(1000, 1, dtype=torch.float64)])
    assert slow.statistics.tau == pytest.approx(0.9 * expected + 0.1, rel=1e-6)
    assert slow.statistics.selected == 500  # clamped


def test_tau_is_saved(x, field):
    mining = HardSampleMining("poisson")
    mined_gradients(field, x, mining)
    assert mining.tau > 1
    restored = HardSampleMining("poisson")
    restored.load_state_dict(mining.state_dict())
    assert restored.tau == mining.tau


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**16, 2.0**80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_scale_cancels(scale, dtype):
    field, x = TwoHeads(dtype), torch.randn(ROWS, 3, dtype=dtype)
    torch.manual_seed(3)
    plain = mined_gradients(field, x, HardSampleMining("poisson"))
    torch.manual_seed(3)
    scaled = mined_gradients(field, x, HardSampleMining("poisson"), lambda y: scale * concentrated_loss(y))
    assert_equal([g / scale for g in scaled], plain, 1e-4 if dtype == torch.float32 else 1e-9)


def test_under_a_grad_scaler():
    def step(scaler: torch.amp.GradScaler, factor: float) -> tuple[list[Tensor], float]:
        torch.manual_seed(0)
        field, x = TwoHeads(torch.float32), torch.randn(ROWS, 3)
        optimizer = torch.optim.SGD(field.parameters(), lr=1e-3)
        loss = factor * concentrated_loss(HardSampleMining("topk")(field, field.parameters(), (x,)))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return [p.detach() for p in field.parameters()], scaler.get_scale()

    start = list(TwoHeads(torch.float32).parameters())
    plain, _ = step(torch.amp.GradScaler("cpu", enabled=False), 1.0)
    scaled, scale = step(torch.amp.GradScaler("cpu", init_scale=1024.0), 1.0)
    assert scale == 1024
    assert not torch.equal(plain[0], start[0])
    assert_equal(scaled, plain, 1e-5)
    overflown, scale = step(torch.amp.GradScaler("cpu", init_scale=1024.0), math.inf)
    assert scale == 512  # the scaler saw it and skipped the step
    assert all(torch.equal(a, b) for a, b in zip(overflown, start, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradient_passes_unmined(field, x, bad):
    mining = HardSampleMining("poisson")
    factor = torch.ones(ROWS, 1, dtype=torch.float64)
    factor[5] = bad
    grads = mined_gradients(field, x, mining, lambda y: (factor * y[0]).sum())
    assert not all(torch.isfinite(g).all() for g in grads)
    assert mining.statistics.selected == ROWS
    assert not mining.statistics.finite
    assert mining.tau == 1


def test_all_zero_gradient_gives_zeros(field, x):
    mining = HardSampleMining("poisson")
    grads = mined_gradients(field, x, mining, lambda y: 0 * y[0].sum() + 0 * y[1].sum())
    assert all((g == 0).all() for g in grads)
    assert mining.statistics.selected == 0
    assert mining.tau == 1


def test_no_rows_at_all(field):
    mining = HardSampleMining("poisson")
    grads = mined_gradients(field, torch.empty(0, 3, dtype=torch.float64), mining)
    assert all((g == 0).all() for g in grads)


def test_hardness_before_the_activations(x):
    """Mining exp/sigmoid outputs with `undo_activations` draws what mining the raw outputs draws."""
    raw = TwoHeads()

    def activated(rows: Tensor) -> tuple[Tensor, Tensor]:
        density, color = raw(rows)
        return density.exp(), color.sigmoid()

    def loss_after(y):
        return concentrated_loss(y)

    def loss_before(y):
        return concentrated_loss((y[0].exp(), y[1].sigmoid()))

    direct = HardSampleMining("topk", 0.2, 0.2)
    loss_before(direct(raw, raw.parameters(), (x,))).backward()
    expected = gradients(raw)
    wrapped = HardSampleMining("topk", 0.2, 0.2)
    undo = undo_activations("exp", "sigmoid")
    loss_after(wrapped(activated, raw.parameters(), (x,), before_activation=undo)).backward()
    assert_equal(gradients(raw), expected)
    assert wrapped.tau == pytest.approx(direct.tau.item(), rel=1e-6)


def test_autocast_is_restored_in_the_second_run(x):
    field = TwoHeads(torch.float32)
    seen: list[tuple[bool, torch.dtype]] = []

    def watched(rows: Tensor) -> tuple[Tensor, ...]:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return field(rows)

    mining = HardSampleMining("poisson")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = mining(watched, field.parameters(), (x.float(),))
    assert outputs[0].dtype == torch.bfloat16
    concentrated_loss(tuple(y.float() for y in outputs)).backward()
    assert seen == [(True, torch.bfloat16)] * 2
    assert not torch.is_autocast_enabled("cpu")
    assert all(p.grad.dtype == torch.float32 for p in field.parameters())


def test_search_replaces_the_first_run_only(field, x):
    with torch.no_grad():
        known = field(x)
    field.rows_seen.clear()
    mining = HardSampleMining("topk", 0.1, 0.1)
    outputs = mining(field, field.parameters(), (x,), search=lambda _: (known[0].clone(), known[1].clone()))
    concentrated_loss(outputs).backward()
    assert field.rows_seen == [round(0.1 * ROWS)]


def test_inputs_get_gradients_on_the_chosen_rows(field, x):
    x.requires_grad_()
    mining = HardSampleMining("topk", 0.1, 0.1)
    concentrated_loss(mining(field, field.parameters(), (x,))).backward()
    mined = x.grad.clone()
    x.grad = None
    concentrated_loss(field(x)).backward()
    chosen = mined.abs().sum(-1) > 0
    assert chosen.sum() == round(0.1 * ROWS)
    assert torch.allclose(mined[chosen], x.grad[chosen], rtol=1e-12)


def test_parameter_hooks_fire_and_frozen_parameters_stay(field, x):
    field.density.weight.requires_grad_(False)
    fired = []
    field.trunk.weight.register_hook(lambda g: fired.append("tensor"))
    field.trunk.weight.register_post_accumulate_grad_hook(lambda p: fired.append("accumulated"))
    for _ in range(2):
        concentrated_loss(HardSampleMining("topk")(field, field.parameters(), (x,))).backward()
    assert fired == ["tensor", "accumulated"] * 2
    assert field.density.weight.grad is None


def test_an_output_that_the_loss_ignores(field, x):
    mining = HardSampleMining("poisson")
    mining(field, field.parameters(), (x,))[1].square().sum().backward()
    assert (field.density.weight.grad == 0).all()
    assert field.color.weight.grad.abs().sum() > 0


def test_no_graph_in_evaluation(field, x):
    with torch.no_grad():
        outputs = HardSampleMining("poisson")(field, field.parameters(), (x,))
    assert not outputs[0].requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "uniform"}, "mining rule must be one of"),
        ({"min_fraction": 0.0}, "0 < min <= max <= 1"),
        ({"min_fraction": 0.6}, "0 < min <= max <= 1"),
        ({"max_fraction": 1.5}, "0 < min <= max <= 1"),
        ({"decay": 1.0}, "decay of tau"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        HardSampleMining(**arguments)


@pytest.mark.parametrize("rule", ["topk", "off"])
def test_hardness_is_told_mined_or_not(field, x, rule):
    mining, heard = HardSampleMining(rule, 0.2, 0.2), []

    def loss(outputs: tuple[Tensor, ...]) -> Tensor:
        return concentrated_loss(told(outputs, heard.append))

    found = mined_gradients(field, x, mining, loss)
    assert_equal(found, mined_gradients(field, x, HardSampleMining(rule, 0.2, 0.2)))
    outputs = [y.detach().requires_grad_() for y in field(x)]
    density, color = torch.autograd.grad(concentrated_loss(outputs), outputs)
    (hardness,) = heard
    torch.testing.assert_close(hardness, torch.cat([density, color], 1).norm(dim=1))
    told(field(x[:0]), heard.append)[0].sum().backward()
    assert heard[1].shape == (0,)


def test_devices_are_checked(field, x):
    with pytest.raises(ValueError, match="inputs are on meta, the mining's tau is on cpu; move"):
        HardSampleMining()(field.to("meta"), field.parameters(), (x.to("meta"),))


def test_shapes_are_checked(field, x):
    mining = HardSampleMining("topk")
    with pytest.raises(ValueError, match="share their first dimension"):
        mining(lambda a, b: (a,), [], (x, x[:3]))
    with pytest.raises(ValueError, match="must return 257 rows"):
        mining(lambda a: (field.trunk(a)[:3],), field.parameters(), (x,))
    with pytest.raises(ValueError, match="activation must be one of"):
        undo_activations("tanh")


@pytest.mark.parametrize("rule", ["poisson", "topk", "off"])
def test_an_observer_is_told_which_rows_were_used(field, rule):
    x = torch.rand(ROWS, 3, dtype=torch.float64)
    mining, told = HardSampleMining(rule), []
    mining.observer = told.append
    with torch.no_grad():
        mining(field, field.parameters(), (x,))
    assert not told
    mined_gradients(field, x, mining)
    assert len(told) == 1
    if rule == "off":
        assert told[0] is None
    else:
        assert len(told[0]) == mining.statistics.selected == field.rows_seen[-1] < ROWS


@pytest.mark.parametrize("split", [100, 0], ids=["uneven", "none in one"])
@pytest.mark.parametrize(("rule", "fraction"), [("topk", 0.2), ("topk", 1.0), ("off", 0.2)])
def test_processes_mine_their_rows_as_one_batch(field, x, rule, fraction, split, run_processes):
    """The rows that are hard in the whole batch, wherever they are, and the whole batch's tau."""
    alone = HardSampleMining(rule, fraction, fraction)
    expected = mined_gradients(field, x, alone)

    def work(rank):
        own = slice(split) if rank == 0 else slice(split, None)
        importance = (0.97 ** torch.arange(ROWS, dtype=x.dtype))[own, None]
        mining = HardSampleMining(rule, fraction, fraction, processes=Processes.current())
        density, color = mining(field, field.parameters(), (x[own],))
        ((importance * density.square()).sum() + (importance * (color - 0.3).square()).sum()).backward()
        Processes.current().add_gradients(list(field.parameters()))
        return gradients(field), float(mining.tau), mining.statistics.selected

    results = run_processes(work)
    for found, tau, _ in results:
        assert_equal(found, expected)
        assert tau == pytest.approx(float(alone.tau), rel=1e-6)
    assert sum(selected for *_, selected in results) == alone.statistics.selected


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_processes_agree_on_what_can_not_be_mined(bad, run_processes):
    """A gradient that is not finite in one process lets all rows of all through; all zeros let none through."""

    def work(rank):
        mining = HardSampleMining("topk", 0.2, 0.2, processes=Processes.current())
        rows, _ = mining.choose([torch.full((10, 2), bad if rank == 1 or bad == 0 else 1.0)])
        return -1 if rows is None else len(rows), float(mining.tau)

    assert run_processes(work) == [(0 if bad == 0 else -1, 1.0)] * 2
