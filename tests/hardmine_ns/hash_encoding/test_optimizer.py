"""RowAdam: Adam where rows are touched, and nothing at all where they are not."""

import copy
import io

import pytest
import torch
from torch import nn

from hardmine_ns.hash_encoding import HashEncoding, RowAdam
from hardmine_ns.hash_encoding.optimizer import _bias_corrections

NUMBERS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-15}


def make_sparse(grad):
    rows = grad.any(1).nonzero()[:, 0]
    return torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape, check_invariants=False)


def small_encoding():
    torch.manual_seed(0)
    return HashEncoding(num_levels=4, log2_hashmap_size=8, base_resolution=4, max_resolution=32)


def train(encoding, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        (encoding(torch.rand(20, 3, generator=generator)) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("row_steps", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((50, 2), torch.float32), ((50, 2), torch.float64), ((9000, 1), torch.float32)]
)
def test_is_adam_when_every_row_is_touched(shape, dtype, sparse, row_steps):
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape, dtype=dtype)) for _ in range(2))
    optimizers = RowAdam([ours], **NUMBERS, row_steps=row_steps), torch.optim.Adam([theirs], **NUMBERS)
    for _ in range(20):
        theirs.grad = torch.randn(shape, dtype=dtype)
        ours.grad = make_sparse(theirs.grad) if sparse else theirs.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (7,), (5, 20), (4, 3, 2, 2), (0, 2)])
def test_is_adam_for_parameters_of_any_shape(shape):
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizers = RowAdam([ours], **NUMBERS), torch.optim.Adam([theirs], **NUMBERS)
    for _ in range(5):
        theirs.grad = torch.randn(shape)
        ours.grad = theirs.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_untouched_rows_keep_value_and_moments(dtype, sparse):
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(40, 2, dtype=dtype))
    optimizer = RowAdam([param], **NUMBERS)
    param.grad = torch.randn(40, 2, dtype=dtype)
    optimizer.step()  # moments are non-zero everywhere from here on
    before = [t.clone() for t in (param.detach(), *(optimizer.state[param][k] for k in ("exp_avg", "exp_avg_sq")))]
    grad = torch.randn(40, 2, dtype=dtype)
    grad[::2] = 0
    param.grad = make_sparse(grad) if sparse else grad
    optimizer.step()
    after = [param.detach(), *(optimizer.state[param][k] for k in ("exp_avg", "exp_avg_sq"))]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[::2], new[::2])
        assert (old[1::2] != new[1::2]).all()


def test_a_late_row_starts_like_the_first_one():
    """Per-row counts: the first step of any row is lr long. One count for all: SparseAdam's behaviour."""
    late, counted, theirs = (nn.Parameter(torch.zeros(2, 1)) for _ in range(3))
    optimizers = (
        RowAdam([late], **NUMBERS),
        RowAdam([counted], **NUMBERS, row_steps=False),
        torch.optim.SparseAdam([theirs], **NUMBERS),
    )
    gradients = [[1.0, 0.0]] * 600 + [[1.0, 1.0]] * 10
    for gradient in gradients:
        for param, optimizer in zip((late, counted, theirs), optimizers, strict=True):
            param.grad = make_sparse(torch.tensor(gradient)[:, None])
            optimizer.step()
    assert late[1].item() == pytest.approx(10 * -NUMBERS["lr"], rel=1e-5)
    assert counted[1].item() == pytest.approx(theirs[1].item(), rel=1e-5)
    assert counted[1].item() < 1.5 * late[1].item()


def test_bias_corrections_end_where_they_are_one():
    for corrections in _bias_corrections((0.9, 0.99)):
        assert corrections[-1] == 1
        assert len(corrections) < 2000
    assert _bias_corrections((0.0, 0.99))[0][1] == 1


@pytest.mark.parametrize("sparse", [True, False])
def test_accumulated_gradients_are_one_step(sparse):
    whole, halves = small_encoding(), small_encoding()
    if not sparse:
        whole.backend = halves.backend = "reference"
    optimizers = RowAdam([whole.table], **NUMBERS), RowAdam([halves.table], **NUMBERS)
    for _ in range(3):
        positions, cotangent = torch.rand(30, 3), torch.randn(30, whole.out_dim)
        whole(positions).backward(cotangent)
        halves(positions[:20]).backward(cotangent[:20])
        halves(positions[20:]).backward(cotangent[20:])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(halves.table, whole.table, rtol=1e-4, atol=1e-6)


def test_rows_given_twice_and_out_of_order():
    param, twin = nn.Parameter(torch.zeros(5, 2)), nn.Parameter(torch.zeros(5, 2))
    param.grad = torch.sparse_coo_tensor(torch.tensor([[3, 1, 3]]), torch.ones(3, 2), (5, 2), check_invariants=False)
    twin.grad = param.grad.to_dense()
    for parameter in (param, twin):
        RowAdam([parameter], **NUMBERS).step()
    assert torch.equal(param, twin)


@pytest.mark.parametrize("zero_grad", [{"set_to_none": True}, {"set_to_none": False}])
def test_zero_grad_forgets_the_gradient(zero_grad):
    encoding = small_encoding()
    optimizer = RowAdam([encoding.table], **NUMBERS)
    encoding(torch.rand(5, 3)).sum().backward()
    optimizer.zero_grad(**zero_grad)
    before = encoding.table.detach().clone()
    optimizer.step()
    assert torch.equal(before, encoding.table)


def test_gradient_scaler_and_clipping_see_the_sparse_gradient():
    plain, scaled = small_encoding(), small_encoding()
    plain.backend = "reference"
    positions = torch.rand(30, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = RowAdam([scaled.table], **NUMBERS)
    plain(positions).sum().backward()
    scaler.scale(scaled(positions).sum()).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(scaled.table.grad.to_dense(), plain.table.grad)
    norms = [nn.utils.clip_grad_norm_([e.table], 0.1).item() for e in (plain, scaled)]
    assert norms[0] == pytest.approx(norms[1])
    torch.testing.assert_close(scaled.table.grad.to_dense(), plain.table.grad)
    RowAdam([plain.table], **NUMBERS).step()
    scaler.step(optimizer)
    torch.testing.assert_close(scaled.table, plain.table)


def test_gradient_scaler_skips_a_step_that_is_not_finite():
    encoding = small_encoding()
    before = encoding.table.detach().clone()
    scaler, optimizer = torch.amp.GradScaler("cpu"), RowAdam([encoding.table], **NUMBERS)
    scaler.scale(encoding(torch.rand(5, 3)).sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(encoding.table, before)
    assert scaler.get_scale() < 2.0**16


@pytest.mark.parametrize("row_steps", [True, False])
def test_resumed_training_continues_the_same(row_steps):
    through = small_encoding()
    optimizer = RowAdam([through.table], **NUMBERS, row_steps=row_steps)
    train(through, optimizer, 5)
    file = io.BytesIO()
    torch.save({"model": through.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(through, optimizer, 5, seed=1)

    resumed = small_encoding()
    again = RowAdam([resumed.table], lr=1.0, row_steps=row_steps)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, 5, seed=1)
    assert torch.equal(resumed.table, through.table)


def test_schedulers_rule_the_learning_rate():
    params = [nn.Parameter(torch.zeros(4, 2)) for _ in range(2)]
    optimizers = [RowAdam([p], **NUMBERS) for p in params]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizers[0], gamma=0.5)
    for param, optimizer in zip(params, optimizers, strict=True):
        param.grad = torch.ones(4, 2)
        optimizer.step()
    scheduler.step()
    first = [p.detach().clone() for p in params]
    for optimizer in optimizers:
        optimizer.step()
    moved, reference = ((p - old).abs().max().item() for p, old in zip(params, first, strict=True))
    assert moved == pytest.approx(reference / 2, rel=1e-5)


def test_closure():
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = RowAdam([param], **NUMBERS)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert param[0, 0].item() == pytest.approx(1 - NUMBERS["lr"])


def test_autograd_notices_a_step_between_forward_and_backward():
    encoding = small_encoding()
    optimizer = RowAdam([encoding.table], **NUMBERS)
    encoding(torch.rand(5, 3)).sum().backward()
    output = encoding(torch.rand(5, 3, requires_grad=True))
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_it_learns():
    """A function that is zero in one half of the cube and one in the other."""
    encoding = small_encoding()
    readout = nn.Linear(encoding.out_dim, 1)
    optimizers = RowAdam([encoding.table], lr=1e-2), torch.optim.Adam(readout.parameters(), lr=1e-2)
    for _ in range(200):
        positions = torch.rand(256, 3)
        loss = (readout(encoding(positions))[:, 0] - (positions[:, 0] > 0.5).float()).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert loss < 0.05


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        ({"eps": -1e-3}, "eps must not be negative, got -0.001"),
    ],
)
def test_numbers_out_of_range(argument, message):
    with pytest.raises(ValueError, match=message):
        RowAdam([nn.Parameter(torch.zeros(2, 2))], **argument)


def test_copies_keep_their_state():
    encoding = small_encoding()
    optimizer = RowAdam([encoding.table], **NUMBERS)
    train(encoding, optimizer, 2)
    twin, twin_optimizer = copy.deepcopy((encoding, optimizer))
    train(encoding, optimizer, 2, seed=3)
    train(twin, twin_optimizer, 2, seed=3)
    assert torch.equal(twin.table, encoding.table)
