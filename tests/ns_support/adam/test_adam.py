"""Optimisers that step together: as PyTorch's Adam, in Triton's interpreter, and built for absent GPUs."""

import pytest
import torch

from ns_support.adam import SharedAdam, stepping_together

SHAPES = (3000,), (5, 3), (1,), (40, 8, 3)
RATES = 0.1, 1e-3, 3.0, 0.01


def optimizers_of(parameters, kind=SharedAdam):
    pairs = zip(parameters, RATES, strict=True)
    return [kind([parameter], lr=rate, betas=(0.9, 0.99), eps=1e-15) for parameter, rate in pairs]


def give_gradients(parameters, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


@pytest.mark.interpreted
def test_kernels_are_adam():
    """Over the first steps, where the corrections for the moments' beginning are large."""
    pytest.importorskip("triton")
    from ns_support.adam import gpu

    torch.manual_seed(0)
    ours = [torch.randn(shape).requires_grad_() for shape in SHAPES]
    exact = [parameter.detach().double().requires_grad_() for parameter in ours]
    groups = [optimizer.param_groups[0] for optimizer in optimizers_of(ours)]
    names = ("exp_avg", "exp_avg_sq")
    states = [{name: torch.zeros(shape) for name in names} | {"step": torch.zeros(())} for shape in SHAPES]
    wanted = optimizers_of(exact, torch.optim.Adam)
    before = [parameter._version for parameter in ours]
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(exact, step)
        gpu.update(list(zip(ours, states, groups, strict=True)))
        for optimizer in wanted:
            optimizer.step()
    for parameter, state, reference, optimizer, version in zip(ours, states, exact, wanted, before, strict=True):
        expected = optimizer.state[reference]
        torch.testing.assert_close(parameter.double(), reference, rtol=1e-5, atol=1e-6)
        for name in names:
            torch.testing.assert_close(state[name].double(), expected[name], rtol=1e-5, atol=1e-7)
        assert float(state["step"]) == 3
        assert parameter._version > version


def test_on_a_cpu_it_is_pytorchs(monkeypatch):
    """Bit for bit, in and out of `stepping_together`; and its state loads into PyTorch's and back."""
    torch.manual_seed(0)
    ours = [torch.randn(shape).requires_grad_() for shape in SHAPES]
    theirs = [parameter.detach().clone().requires_grad_() for parameter in ours]
    optimizers, expected = optimizers_of(ours), optimizers_of(theirs, torch.optim.Adam)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        with stepping_together([*optimizers, torch.optim.SGD([torch.zeros(1)])]):
            for optimizer in optimizers:
                optimizer.step()
        for optimizer in expected:
            optimizer.step()
        if step == 1:
            for optimizer, other in zip(optimizers, expected, strict=True):
                state, others = optimizer.state_dict(), other.state_dict()
                optimizer.load_state_dict(others)
                other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_step_that_fails_updates_nothing(monkeypatch):
    parameter = torch.ones(2, requires_grad=True)
    optimizer = optimizers_of([parameter, *map(torch.zeros, (1, 1, 1))])[0]
    monkeypatch.setattr(SharedAdam, "_can_wait", lambda self: True)
    parameter.grad = torch.ones(2)

    def fail():
        with stepping_together([optimizer]):
            optimizer.step()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert parameter.tolist() == [1, 1]
    optimizer.step()
    assert optimizer.waiting is None


@pytest.mark.parametrize("name", ["steps_kernel", "adam_kernel"])
def test_builds_without_spilling(name, capability, triton_build):
    from ns_support.adam import gpu

    types = {"table": "*i64", "rates": "*fp32", "number": "i32"}
    constants = {"WIDTH": 16} | ({"BLOCK": gpu._BLOCK} if name == "adam_kernel" else {})
    build = triton_build(getattr(gpu, name), types, constants, capability, num_warps=4 if constants.get("BLOCK") else 1)
    assert build.spilled == 0
    assert build.registers <= 96  # 40 with Triton 3.8, 80 with 3.9


def test_hooks_are_called_once_whatever_optimisers_there_are():
    """PyTorch wraps `step` of each class that it makes an optimiser of: here of both."""
    parameter, calls = torch.nn.Parameter(torch.zeros(2)), []
    torch.optim.Adam([parameter])
    optimizer = SharedAdam([parameter])
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert calls == ["before", "after"]
    assert (parameter < 0).all()
