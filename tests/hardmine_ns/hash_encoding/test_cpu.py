"""The Numba kernels against the reference, forward and both gradients, by relative L2 error."""

import copy
import pickle

import pytest
import torch

from hardmine_ns.hash_encoding import HashEncoding

TOLERANCE = 1e-6


def relative_error(value, expected):
    return ((value - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def pair(**sizes):
    """The same encoding in both back ends, with features large enough for errors to show."""
    torch.manual_seed(0)
    sizes = {"num_levels": 8, "log2_hashmap_size": 12, "base_resolution": 5, "max_resolution": 200} | sizes
    fast, slow = HashEncoding(**sizes, backend="cpu"), HashEncoding(**sizes, backend="reference")
    with torch.no_grad():
        fast.table.normal_()
    slow.load_state_dict(fast.state_dict())
    return fast, slow


def run(encoding, positions, cotangent):
    positions = positions.clone().requires_grad_()
    encoding.zero_grad()
    output = encoding(positions)
    output.backward(cotangent)
    grad = encoding.table.grad
    return output.detach(), positions.grad, grad.to_dense() if grad.is_sparse else grad


@pytest.mark.parametrize("features", [1, 2, 3])
@pytest.mark.parametrize("points", [1, 63, 1000])
def test_agrees_with_the_reference(points, features):
    fast, slow = pair(features_per_level=features)
    positions, cotangent = torch.rand(points, 3), torch.randn(points, fast.out_dim)
    for name, value, expected in zip(
        ("encoding", "gradient of positions", "gradient of table"),
        run(fast, positions, cotangent),
        run(slow, positions, cotangent),
        strict=True,
    ):
        assert relative_error(value, expected) < TOLERANCE, name


def test_agrees_at_the_default_size():
    fast, slow = pair(num_levels=16, log2_hashmap_size=19, base_resolution=16, max_resolution=2048)
    positions, cotangent = torch.rand(500, 3), torch.randn(500, 32)
    for value, expected in zip(run(fast, positions, cotangent), run(slow, positions, cotangent), strict=True):
        assert relative_error(value, expected) < TOLERANCE


@pytest.mark.parametrize("reach", [0.0, 1.0, -0.7, 1.3, 1e4, -1e4, 1e12])
def test_agrees_on_the_border_and_outside(reach):
    fast, slow = pair()
    positions = torch.rand(40, 3)
    positions[:, torch.randint(3, ())] = reach
    cotangent = torch.randn(40, fast.out_dim)
    for value, expected in zip(run(fast, positions, cotangent), run(slow, positions, cotangent), strict=True):
        assert relative_error(value, expected) < TOLERANCE


def test_no_points():
    fast, _ = pair()
    output, positions_grad, table_grad = run(fast, torch.rand(0, 3), torch.rand(0, fast.out_dim))
    assert output.shape == (0, fast.out_dim)
    assert positions_grad.shape == (0, 3)
    assert not table_grad.any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_positions_are_passed_on_and_do_no_harm(backend, bad):
    encoding = dict(zip(("cpu", "reference"), pair(), strict=True))[backend]
    positions = torch.rand(3, 3)
    positions[1, 2] = bad
    output, _, _ = run(encoding, positions, torch.ones(3, encoding.out_dim))
    assert output[1].isnan().all()
    assert output[[0, 2]].isfinite().all()


def test_gradient_holds_each_touched_row_once_in_order():
    fast, slow = pair()
    positions, cotangent = torch.rand(50, 3), torch.randn(50, fast.out_dim)
    fast(positions).backward(cotangent)
    grad = fast.table.grad
    assert grad.is_sparse
    rows = grad._indices()[0]
    assert (rows[1:] > rows[:-1]).all()
    _, _, expected = run(slow, positions, cotangent)
    assert torch.equal(rows, expected.any(1).nonzero()[:, 0])


def test_points_without_gradient_touch_no_row():
    fast, _ = pair()
    cotangent = torch.randn(50, fast.out_dim)
    cotangent[10:] = 0
    positions = torch.rand(50, 3)
    _, _, all_points = run(fast, positions, cotangent)
    fast.zero_grad()
    fast(positions[:10]).backward(cotangent[:10])
    assert torch.equal(fast.table.grad.to_dense(), all_points)
    assert fast.table.grad._nnz() == all_points.any(1).sum()


@pytest.fixture
def threads():
    """Sets the number of threads, and resets it afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_same_bits_on_every_run_and_number_of_threads(threads):
    fast, _ = pair()
    positions, cotangent = torch.rand(3000, 3), torch.randn(3000, fast.out_dim)
    runs = []
    for count in (1, 2, 2, 5):
        threads(count)
        runs.append(run(fast, positions, cotangent))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_backward_starts_from_zero_each_time():
    fast, _ = pair()
    cotangent = torch.randn(2000, fast.out_dim)
    first, second = torch.rand(2000, 3), torch.rand(700, 3)
    _, _, alone = run(fast, second, cotangent[:700])
    run(fast, first, cotangent)
    _, _, after_another = run(fast, second, cotangent[:700])
    assert torch.equal(alone, after_another)


def test_gradients_of_two_passes_add_up():
    fast, slow = pair()
    positions, cotangent = torch.rand(200, 3), torch.randn(200, fast.out_dim)
    for encoding in (fast, slow):
        encoding(positions[:120]).backward(cotangent[:120])
        encoding(positions[60:]).backward(cotangent[60:])
    assert relative_error(fast.table.grad.to_dense(), slow.table.grad) < TOLERANCE


def test_gradient_is_left_out_where_nobody_asks():
    fast, _ = pair()
    fast.table.requires_grad_(False)
    positions = torch.rand(10, 3, requires_grad=True)
    fast(positions).sum().backward()
    assert fast.table.grad is None
    assert positions.grad.any()
    assert not fast(torch.rand(10, 3)).requires_grad


def test_strided_positions_and_expanded_cotangents():
    fast, slow = pair()
    positions = torch.rand(3, 70).t()
    assert relative_error(fast(positions), slow(positions)) < TOLERANCE
    fast(positions).sum().backward()
    slow(positions).sum().backward()
    assert relative_error(fast.table.grad.to_dense(), slow.table.grad) < TOLERANCE


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_work_by_themselves(duplicate):
    fast, _ = pair()
    positions, cotangent = torch.rand(300, 3), torch.randn(300, fast.out_dim)
    expected = run(fast, positions, cotangent)
    twin = duplicate(fast)
    assert twin._table_gradient is not fast._table_gradient
    assert all(torch.equal(a, b) for a, b in zip(run(twin, positions, cotangent), expected, strict=True))
