"""Marching and compositing on a GPU against the Numba kernels, at the size of a training step."""

from dataclasses import fields

import pytest
import torch

from hardmine_ns.marching import OccupancyGrid, PackedSamples, composite, march_rays, visible_samples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
RAYS = 20_001
FEW = 1e-3
"""Share of the rays that may differ by a sample: a midpoint within rounding of a voxel's face falls to either side."""


def scene(levels, resolution=64):
    torch.manual_seed(0)
    grid = OccupancyGrid(torch.tensor([-1.0, -0.7, -1.3, 1.0, 0.7, 1.3]), resolution=resolution, levels=levels)
    coarse = torch.rand(levels, 8, 8, 8) < 0.3
    for axis in (1, 2, 3):
        coarse = coarse.repeat_interleave(resolution // 8, axis)
    grid.binaries.copy_(coarse)
    origins = 3 * torch.randn(RAYS, 3)
    directions = 0.7 * torch.randn(RAYS, 3) - origins
    directions[::50, 0] = 0.0  # parallel to a pair of faces
    fars = 3.0 + 10 * torch.rand(RAYS)
    fars[5] = 0.0
    return grid, (origins, torch.nn.functional.normalize(directions, dim=-1), torch.full((RAYS,), 0.1), fars)


def to(samples, device):
    values = (getattr(samples, field.name) for field in fields(samples))
    return PackedSamples(*(value.to(device) if isinstance(value, torch.Tensor) else value for value in values))


@pytest.mark.parametrize(("levels", "cone", "step"), [(1, 0.0, 0.021), (3, 0.0, 0.05), (3, 0.02, 0.02)])
def test_marching_agrees_with_the_cpu(levels, cone, step):
    grid, rays = scene(levels)
    jitter = torch.rand(RAYS)
    expected = march_rays(*rays, grid, step_size=step, cone_angle=cone, jitter=jitter)
    moved = [tensor.to(DEVICE) for tensor in (*rays, jitter)]
    samples = march_rays(*moved[:4], grid.to(DEVICE), step_size=step, cone_angle=cone, jitter=moved[4])
    assert samples.t_starts.device.type == samples.ray_indices.device.type == DEVICE
    assert len(expected) > 10 * RAYS

    same = samples.offsets.cpu().diff() == expected.offsets.diff()
    assert float((~same).double().mean()) < FEW
    ours, wanted = samples.ray_indices.cpu(), expected.ray_indices
    assert bool((ours.diff() >= 0).all())
    for found, exact in ((samples.t_starts, expected.t_starts), (samples.t_ends, expected.t_ends)):
        off = (found.cpu()[same[ours]] - exact[same[wanted]]).abs() > 1e-5 * exact[same[wanted]]
        rays_off = wanted[same[wanted]][off].unique()
        assert len(rays_off) < FEW * RAYS


def test_no_rays_and_rays_that_see_nothing():
    grid, rays = scene(1)
    grid = grid.to(DEVICE)
    none = march_rays(*(tensor[:0].to(DEVICE) for tensor in rays), grid, step_size=0.1)
    assert none.offsets.tolist() == [0]
    grid.binaries.zero_()
    nothing = march_rays(*(tensor[:9].to(DEVICE) for tensor in rays), grid, step_size=0.1)
    assert nothing.offsets.tolist() == [0] * 10


def test_compositing_agrees_with_the_cpu():
    grid, rays = scene(1)
    samples = march_rays(*rays, grid, step_size=0.05)
    densities, colors = 3 * torch.rand(len(samples)), torch.rand(len(samples), 3)
    cotangent = torch.randn(RAYS, 5)

    def differentiate(device):
        leaves = [tensor.to(device).requires_grad_() for tensor in (densities, colors)]
        result = composite(*leaves, to(samples, device))
        stacked = torch.cat([result.color, result.accumulation[:, None], result.distance[:, None]], 1)
        return stacked.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(stacked, leaves, cotangent.to(device)))

    for actual, expected in zip(differentiate(DEVICE), differentiate("cpu"), strict=True):
        assert float((actual - expected).norm()) < 1e-4 * float(expected.norm())
    seen = visible_samples(densities.to(DEVICE), to(samples, DEVICE), 0.05, 0.1).cpu()
    differ = seen != visible_samples(densities, samples, 0.05, 0.1)
    assert float(differ.double().mean()) < FEW
    assert 0 < int(seen.sum()) < len(samples)
