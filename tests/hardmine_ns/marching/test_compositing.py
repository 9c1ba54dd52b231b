"""Compositing, against a dense computation and against closed forms. Needs torch and numba only."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hardmine_ns.marching import PackedSamples, composite, visible_samples
from hardmine_ns.marching.cpu.compositing import composite as composite_numba
from hardmine_ns.marching.cpu.compositing import composite_backward as composite_backward_numba
from hardmine_ns.marching.reference import composite_backward_torch, composite_torch
from hardmine_ns.marching.samples import pack


def random_samples(num_rays: int = 60, most: int = 40, dtype: torch.dtype = torch.float64) -> PackedSamples:
    torch.manual_seed(2)
    counts = torch.randint(0, most, (num_rays,))
    counts[[0, -1]] = 0
    rays = torch.repeat_interleave(torch.arange(num_rays), counts)
    starts = torch.rand(len(rays), dtype=dtype) * 0.01 + torch.arange(len(rays)) % 97
    return pack(starts, starts + 0.1 + torch.rand(len(rays), dtype=dtype), rays, num_rays)


def dense_composite(densities, colors, samples):
    """Per ray, with autograd, straight from the equations."""
    rows = []
    for ray in range(samples.num_rays):
        s = slice(*samples.offsets[ray : ray + 2].tolist())
        x = densities[s] * (samples.t_ends - samples.t_starts)[s]
        before = torch.cat([x.new_zeros(1), torch.cumsum(x, 0)[:-1]]) if len(x) else x
        w = torch.exp(-before) * (1 - torch.exp(-x))
        rows.append(torch.cat([(w[:, None] * colors[s]).sum(0), w.sum()[None], (w * samples.midpoints[s]).sum()[None]]))
    return torch.stack(rows)


def test_composite_and_its_gradient_against_dense_autograd():
    samples = random_samples()
    densities = (3 * torch.rand(len(samples), dtype=torch.float64)).requires_grad_()
    colors = torch.rand(len(samples), 3, dtype=torch.float64).requires_grad_()
    result = composite(densities, colors, samples)
    actual = torch.cat([result.color, result.accumulation[:, None], result.distance[:, None]], dim=1)
    expected = dense_composite(densities, colors, samples)
    assert torch.allclose(actual, expected, atol=1e-12)
    cotangent = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad(actual, (densities, colors), cotangent),
        torch.autograd.grad(expected, (densities, colors), cotangent),
        strict=True,
    ):
        assert torch.allclose(a, e, rtol=1e-10, atol=1e-12)


def test_gradient_through_the_weights():
    samples = random_samples(8, 12)
    densities = torch.rand(len(samples), dtype=torch.float64).requires_grad_()
    colors = torch.rand(len(samples), 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda d, c: composite(d, c, samples), (densities, colors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numba_and_torch_composite_agree(dtype):
    samples = random_samples(2000, 130)
    thickness = torch.rand(len(samples), dtype=dtype)
    colors = torch.rand(len(samples), 3, dtype=dtype)
    middles = samples.midpoints.to(dtype)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-11
    fast, slow = (
        composite_numba(thickness, colors, middles, samples.offsets),
        composite_torch(thickness, colors, middles, samples),
    )
    for a, b in zip(fast, slow, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()
    grads = torch.randn_like(fast[2]), torch.randn_like(fast[0])
    for a, b in zip(
        composite_backward_numba(colors, middles, samples.offsets, *fast[:2], *grads),
        composite_backward_torch(colors, middles, samples, *fast[:2], *grads),
        strict=True,
    ):
        assert (a - b).abs().max() <= 10 * tolerance * b.abs().max()


def test_many_samples_lose_no_precision():
    """A fog of 258k samples: one float32 running sum over all of them would be wrong by 0.03."""
    per_ray, rays = 258, 1000
    indices = torch.repeat_interleave(torch.arange(rays), per_ray)
    starts = torch.arange(per_ray).repeat(rays).float()
    samples = pack(starts, starts + 1, indices, rays)
    densities, colors = torch.full((len(samples),), 0.01), torch.ones(len(samples), 3)
    exact = 1 - math.exp(-0.01 * per_ray)
    assert composite(densities, colors, samples).accumulation.tolist() == pytest.approx([exact] * rays, abs=1e-5)
    sums = composite_torch(densities, colors, samples.midpoints, samples)[2]
    assert sums[:, 3].tolist() == pytest.approx([exact] * rays, abs=1e-5)


@pytest.mark.parametrize("extreme", [1e17, math.inf, math.nan])
def test_an_extreme_ray_leaves_the_others_alone(extreme):
    """As in the Numba kernels, which go along one ray at a time; its own ray too comes out as it does there."""
    samples = random_samples(30, 40, torch.float32)
    thickness, colors = torch.rand(len(samples)), torch.rand(len(samples), 3)
    ray = int(samples.ray_indices[200])
    thickness[200] = extreme
    middles = samples.midpoints
    slow = composite_torch(thickness, colors, middles, samples)
    fast = composite_numba(thickness, colors, middles, samples.offsets)
    for a, b in zip(slow, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
    gradients = torch.randn(30, 5), torch.randn(len(samples))
    slow_gradients = composite_backward_torch(colors, middles, samples, *fast[:2], *gradients)
    fast_gradients = composite_backward_numba(colors, middles, samples.offsets, *fast[:2], *gradients)
    others = samples.ray_indices != ray
    assert others[-1]
    for a, b in zip(slow_gradients, fast_gradients, strict=True):
        rows = others if math.isnan(extreme) else slice(None)
        torch.testing.assert_close(a[rows], b[rows], rtol=1e-4, atol=1e-6 * float(b[rows].abs().max()))
        assert torch.isfinite(a[rows]).all()


def test_visibility_beyond_an_extreme_ray(monkeypatch):
    samples = random_samples(30, 40, torch.float32)
    densities = torch.rand(len(samples))
    densities[200] = 1e17
    expected = visible_samples(densities, samples, 0.05, 0.1)
    device = SimpleNamespace(type="elsewhere")
    monkeypatch.setattr(Tensor, "device", property(lambda _: device))
    assert torch.equal(visible_samples(densities, samples, 0.05, 0.1), expected)


def test_visibility_follows_the_rule():
    samples = random_samples(50, 60, torch.float32)
    densities = torch.rand(len(samples)) * 2
    mask = visible_samples(densities, samples, early_stop=0.05, alpha_threshold=0.1)
    x = densities * (samples.t_ends - samples.t_starts)
    for ray in range(samples.num_rays):
        s = slice(*samples.offsets[ray : ray + 2].tolist())
        before = torch.cumsum(x[s], 0) - x[s]
        expected = (torch.exp(-before) >= 0.05) & (1 - torch.exp(-x[s]) >= 0.1)
        assert torch.equal(mask[s], expected)
    assert 0 < mask.sum() < len(mask)


def test_early_stop_changes_the_picture_by_no_more_than_its_threshold():
    samples = random_samples(200, 80, torch.float32)
    densities, colors = 2 * torch.rand(len(samples)), torch.rand(len(samples), 3)
    rows = torch.nonzero(visible_samples(densities, samples, early_stop=1e-2))[:, 0]
    kept = samples.select(rows)
    assert len(kept) < len(samples)
    error = composite(densities, colors, samples).color - composite(densities[rows], colors[rows], kept).color
    assert error.abs().max() <= 1e-2


def test_composite_checks_shapes():
    samples = random_samples()
    with pytest.raises(ValueError, match="densities must be"):
        composite(torch.ones(3), torch.ones(3, 3), samples)


def test_no_samples():
    samples = pack(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.int64), 5)
    densities = torch.empty(0, requires_grad=True)
    result = composite(densities, torch.empty(0, 3), samples)
    assert torch.equal(result.color, torch.zeros(5, 3))
    result.color.sum().backward()
    assert densities.grad.shape == (0,)
