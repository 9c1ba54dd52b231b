"""That what would wait, launch or fail on a GPU is seen by its pretence."""

import pytest
import torch

pytest.importorskip("triton")

from pretended_gpu import pretended_gpu


@pytest.fixture
def counts(monkeypatch):
    with pretended_gpu(monkeypatch) as counts:
        yield counts


@pytest.fixture
def values(counts):
    values = torch.arange(4.0).to("cuda:0")
    counts.clear()
    return values


@pytest.mark.parametrize(
    "read",
    [
        float,
        lambda values: bool((values > 1).any()),
        lambda values: values.tolist(),
        lambda values: values.cpu(),
        lambda values: values.sum().item(),
        torch.nonzero,
        lambda values: values[values > 1],
        lambda values: values[torch.tensor([1, 2])],
        lambda values: values + torch.ones(4).to("cuda:0"),
        lambda values: values + torch.ones(4).pin_memory().to("cuda:0"),
        lambda values: torch.tensor([1.0, 2.0], device="cuda:0"),
        lambda values: values.copy_(torch.ones(4)),
    ],
)
def test_waits_are_counted(read, values, counts):
    read(values[0] if read is float else values)
    assert counts.waits.total() == 1
    assert counts.kernels.total() <= 3


@pytest.mark.parametrize(
    "work",
    [
        lambda values: (values * 2 + 1).sum(),
        lambda values: torch.where(values > 1, values, 0.0),
        lambda values: values[torch.zeros(2, dtype=torch.int64, device="cuda:0")],
        lambda values: values + torch.ones(4).pin_memory().to("cuda:0", non_blocking=True),
        lambda values: torch.full((3,), 0.5, device="cuda:0"),
        lambda values: values.view(2, 2).to(torch.float64).to("cuda:0"),
    ],
)
def test_what_does_not_wait_is_not_counted(work, values, counts):
    assert work(values).is_cuda
    assert counts.waits.total() == 0


def test_kernels_are_counted_and_views_are_not(values, counts):
    (values.view(2, 2)[0] * 2).exp_()
    assert dict(counts.kernels) == {"mul": 1, "exp_": 1}


def test_what_a_gpu_refuses_is_refused(values):
    with pytest.raises(RuntimeError, match=r"add: expected all tensors on cuda:0, got \[\[4\]\] on the cpu"):
        values + torch.ones(4)
    with pytest.raises(RuntimeError, match=r"index: expected all tensors on cuda:0"):
        torch.ones(4)[values.long()]
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        values.numpy()


def test_gradients_and_modules_are_on_the_gpu(values, counts):
    layer = torch.nn.Linear(4, 2).to("cuda:0")
    counts.clear()
    layer(values).sum().backward()
    assert layer.weight.grad.is_cuda
    assert layer.weight.grad.inner.tolist() == [[0.0, 1.0, 2.0, 3.0]] * 2
    assert counts.waits.total() == 0


def test_a_kernel_is_not_given_tensors_of_the_cpu(values):
    from hardmine_ns.hash_encoding.gpu import encoding as gpu

    with pytest.raises(ValueError, match=r"forward_kernel was given table \[4\] on the cpu"):
        gpu.forward_kernel[(1,)](values, torch.ones(4))


def test_nothing_is_left_of_it(monkeypatch):
    with pretended_gpu(monkeypatch):
        pass
    assert torch.ones(2).to(torch.float64).device.type == "cpu"
    assert type(torch.tensor([1.0])) is torch.Tensor
