"""The search for visible samples, the draw of hard ones and the harmonics on a GPU against the same on a CPU."""

import copy

import pytest
import torch

from hardmine_ns.hash_encoding import HashEncoding
from hardmine_ns.marching import OccupancyGrid, march_rays
from hardmine_ns.marching.lattice import RayLattices
from hardmine_ns.mining.on_gpu import Padded, _measure, draw_padded, saturated
from hardmine_ns.rendering.field import HashField, UnitCube, spherical_harmonics
from hardmine_ns.rendering.visibility import Rays, search

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
RAYS = 4000
ROWS, BEHIND = 200_003, 50_000
FEW = 2e-3
"""Share of the rays that may differ by a sample: where a midpoint is within rounding of a voxel's face, or a
transmittance of the least."""


def scene(levels, step):
    torch.manual_seed(0)
    field = HashField(HashEncoding(max_resolution=512))
    with torch.no_grad():
        field.encoding.table.uniform_(-2, 2)
    grid = OccupancyGrid(torch.tensor([-1.0, -0.7, -1.3, 1.0, 0.7, 1.3]), resolution=32, levels=levels)
    grid.binaries.copy_(torch.rand(grid.binaries.shape) < 0.3)
    grid.thickness.uniform_(0, 0.02)
    origins = 3 * torch.randn(RAYS, 3)
    directions = torch.nn.functional.normalize(0.5 * torch.randn(RAYS, 3) - origins, dim=-1)
    return field, grid, (origins, directions, 0.1 + torch.rand(RAYS) * step, torch.full((RAYS,), 9.0))


@pytest.mark.parametrize(("levels", "cone", "step"), [(1, 0.0, 0.01), (3, 0.01, 0.01)])
def test_search_agrees_with_the_cpu(levels, cone, step):
    from hardmine_ns.rendering.gpu.launch import Limits, visible_of_rays

    field, grid, rays = scene(levels, step)
    contracts = levels > 1
    samples = march_rays(*rays, grid, step_size=step, cone_angle=cone)
    to_unit = UnitCube(grid.center, grid.half_extent, contracts)
    expected = search(field, samples, Rays(*rays[:2]), to_unit, 1e-3, 1e-3, keep_features=True)
    there = [copy.deepcopy(module).to(DEVICE) for module in (field, grid)]
    lattices = RayLattices(*(tensor.to(DEVICE) for tensor in rays), step, cone)
    report, capacity = torch.zeros(2, dtype=torch.float64, device=DEVICE), (len(expected.samples) // 64 + 100) * 64
    observed = torch.full((grid.num_cells,), -1.0, device=DEVICE)
    found = visible_of_rays(
        there[0], lattices, there[1], Limits(1e-3, 1e-3), capacity, report, contracts=contracts, observed=observed
    )  # fmt: skip
    assert bool(found.kept.all())
    offsets, counts = found.samples.offsets.cpu(), expected.samples.offsets.diff()
    assert report[0] == offsets[-1]
    same = offsets.diff() == counts
    assert float((~same).double().mean()) < FEW
    ours, theirs = found.samples.ray_indices[: int(offsets[-1])].cpu(), expected.samples.ray_indices
    for own, exact in ((found.geometry, expected.geometry), (found.features, expected.features)):
        own, exact = own[: len(ours)].cpu()[same[ours]], exact[same[theirs]]
        assert float((own - exact).norm() / exact.norm()) < 1e-4
    assert 0 < int((observed >= 0).sum()) <= report[1]
    assert not bool(observed[~there[1].binaries.flatten()].ge(0).any())


def test_the_draw_follows_its_law():
    torch.manual_seed(0)
    hard = torch.rand(ROWS, 1) ** 6
    gradients = [torch.cat([torch.randn(ROWS, n) * hard, torch.zeros(BEHIND, n)]) for n in (1, 3)]
    tau, same = torch.ones((), device=DEVICE), torch.ones(())
    there = [gradient.to(DEVICE) for gradient in gradients]
    for number in range(3):
        torch.manual_seed(100 + number)
        padded = Padded(torch.tensor(ROWS, device=DEVICE), 128_000, torch.zeros(4, dtype=torch.float64, device=DEVICE))
        rows, weights = (tensor.cpu() for tensor in draw_padded(there, tau, 0.9, (0.05, 0.5), "poisson", padded))
        wanted = _measure(gradients, same, 0.9, (0.05, 0.5), torch.tensor(ROWS))
        assert float(tau) == pytest.approx(float(same), rel=1e-4)
        total = int(padded.report[1])
        probability = saturated(wanted.values, wanted.expected)
        spread = float((probability * (1 - probability)).sum().sqrt())
        assert abs(total - float(wanted.expected)) < 6 * spread + 1e-3 * total
        assert torch.equal(rows[:total], rows[:total].unique())
        torch.testing.assert_close(weights[:total], probability[rows[:total]].reciprocal(), rtol=1e-2, atol=0)
        assert not weights[total:].any()


def test_harmonics():
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(10_001, 3), dim=-1)
    own, exact = directions.to(DEVICE).requires_grad_(), directions.double().requires_grad_()
    found, wanted, gradient = spherical_harmonics(own), spherical_harmonics(exact), torch.randn(10_001, 16)
    found.backward(gradient.to(DEVICE))
    wanted.backward(gradient.double())
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.grad.cpu().double(), exact.grad, rtol=1e-4, atol=1e-4)
