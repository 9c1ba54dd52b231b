"""A and the gradients of what it is made of: the kernels against PyTorch's autograd."""

import numpy as np
import pytest
import torch

from raygauss_ns.casting import whitening_matrices
from raygauss_ns.casting.cpu.whitening import parameter_gradients, whitenings_of
from raygauss_ns.casting.moments import moments_to_gradients


def parameters(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.exp(2 * torch.randn(count, 3, generator=generator) - 3)
    quats = torch.randn(count, 4, generator=generator) * torch.logspace(-3, 3, max(count, 1))[:count, None]
    densities = torch.rand(count, generator=generator) + 0.1
    return scales, quats, densities, torch.randn(count, 13, generator=generator)


@pytest.mark.parametrize("count", [0, 1, 3, 100])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_whitenings(count, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    scales, quats, _, _ = parameters(count)
    expected = whitening_matrices(scales.double(), quats.double()).numpy()
    np.testing.assert_allclose(whitenings_of(scales.numpy(), quats.numpy()), expected, rtol=1e-6, atol=1e-6 * 1e3)


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_gradients_are_autograds(count):
    scales, quats, densities, moments = parameters(count, seed=1)
    leaves = [scales.double().requires_grad_(), quats.double().requires_grad_()]
    whitenings = whitening_matrices(*leaves)
    means, by_whitenings, by_densities, _ = moments_to_gradients(moments.double(), whitenings, densities.double())
    expected = (means, *torch.autograd.grad(whitenings, leaves, by_whitenings.detach()), by_densities)
    inputs = [tensor.numpy() for tensor in (moments, scales, quats, densities)]
    actual = parameter_gradients(*inputs, whitenings.detach().float().numpy())
    for gradient, wanted in zip(actual, expected, strict=True):
        wanted = wanted.detach().numpy()
        assert gradient.shape == wanted.shape
        columns = wanted.size // max(count, 1)
        size = np.linalg.norm(wanted.reshape(count, columns), axis=-1, keepdims=True) + 1e-30
        assert (np.abs(gradient - wanted).reshape(count, columns) < 2e-5 * size).all()


def test_no_moments_no_gradient_whatever_the_parameters():
    scales = np.array([[0, 1, np.inf], [np.nan, 1, 1]], np.float32)
    quats, densities = np.zeros((2, 4), np.float32), np.zeros(2, np.float32)
    gradients = parameter_gradients(np.zeros((2, 13), np.float32), scales, quats, densities, np.full((2, 3, 3), np.nan))
    assert all((gradient == 0).all() for gradient in gradients)
