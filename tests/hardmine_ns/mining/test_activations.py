"""Gradients before an activation, from those behind it."""

import torch
from torch import nn

from hardmine_ns.mining import undo_activations


def test_undo_activations_matches_autograd():
    functions = {
        "exp": torch.exp,
        "sigmoid": torch.sigmoid,
        "softplus": nn.functional.softplus,
        "relu": torch.relu,
        "none": torch.clone,
    }
    z = torch.randn(50, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(50, dtype=torch.float64)
    for name, function in functions.items():
        y = function(z)
        (expected,) = torch.autograd.grad(y, z, cotangent)
        (actual,) = undo_activations(name)([y.detach()], [cotangent])
        assert torch.allclose(actual, expected, atol=1e-12), name
