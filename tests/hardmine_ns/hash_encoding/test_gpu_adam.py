"""RowAdam's kernel: in Triton's interpreter as the Numba kernel and PyTorch's version, and built for absent GPUs."""

import pytest
import torch

from hardmine_ns.hash_encoding.optimizer import _bias_corrections, _update_on_cpu, _update_with_torch

pytest.importorskip("triton")

GROUP = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-15}


def fresh(shape, row_steps):
    state = {"step": torch.tensor(0.0), "exp_avg": torch.zeros(shape), "exp_avg_sq": torch.zeros(shape)}
    return state | ({"row_steps": torch.zeros(shape[:1])} if row_steps else {})


@pytest.mark.interpreted
@pytest.mark.parametrize("row_steps", [True, False])
@pytest.mark.parametrize("shape", [(600, 2), (5, 20), (7,), (), (0, 2)])
def test_agrees_with_the_other_versions(shape, row_steps):
    from hardmine_ns.hash_encoding.gpu import adam

    torch.manual_seed(0)
    start = torch.randn(shape)
    on_cpu = 0 < start.ndim <= 2 and start.shape[1:].numel() <= 8 and start.numel() > 0
    other = _update_on_cpu if on_cpu else _update_with_torch
    params, states = [start.clone() for _ in range(2)], [fresh(shape, row_steps) for _ in range(2)]
    for _ in range(4):
        gradient = torch.randn(shape)
        if start.ndim:
            gradient[torch.rand(len(gradient)) < 0.5] = 0
            gradient[:1] = 0
        for state in states:
            state["step"] += 1
        adam.update(params[0], gradient, states[0], GROUP, _bias_corrections(GROUP["betas"]))
        other(params[1], None, gradient, states[1], GROUP)
    torch.testing.assert_close(params[0], params[1], rtol=1e-6, atol=1e-7)
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-6, atol=5e-8)
    if start.ndim == 2 and len(start):
        still = states[1]["exp_avg_sq"].sum(1) == 0
        assert still.any()
        assert torch.equal(params[0][still], start[still])


@pytest.mark.interpreted
def test_a_gradient_that_is_not_finite_reaches_its_row_only():
    from hardmine_ns.hash_encoding.gpu import adam

    param, state = torch.ones(6, 2), fresh((6, 2), True)
    state["step"] += 1
    gradient = torch.zeros(6, 2)
    gradient[2, 0], gradient[4, 1] = torch.nan, 1.0
    adam.update(param, gradient, state, GROUP, _bias_corrections(GROUP["betas"]))
    assert param.isfinite().all(1).tolist() == [True, True, False, True, True, True]
    assert state["row_steps"].tolist() == [0, 0, 1, 0, 1, 0]


TYPES = dict.fromkeys(["values", "gradient", "first", "second", "row_steps", "corrections"], "*fp32")
TYPES |= dict.fromkeys(["lr", "beta1", "rest1", "beta2", "rest2", "eps"], "fp32")
TYPES |= dict.fromkeys(["rows", "step", "last"], "i32")


@pytest.mark.parametrize("width", [2, 64])
def test_builds_without_spilling(width, capability, triton_build):
    from hardmine_ns.hash_encoding.gpu import adam

    constants = {"F": width, "WIDTH": width, "BLOCK": 1024 // width, "ROW_STEPS": True}
    assert triton_build(adam.row_adam_kernel, TYPES, constants, capability, num_warps=4).spilled == 0
