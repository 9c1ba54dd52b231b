"""Marching, against its definition and against closed forms. Needs torch and numba only."""

import math

import pytest
import torch
from torch import Tensor

from hardmine_ns.marching import OccupancyGrid, march_rays
from hardmine_ns.marching.lattice import RayLattices
from hardmine_ns.marching.reference import march_rays_torch
from ns_support.errors import UserError

UNIT_BOX = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


def random_grid(density: float, levels: int = 1, resolution: int = 32, aabb: Tensor = UNIT_BOX) -> OccupancyGrid:
    torch.manual_seed(0)
    grid = OccupancyGrid(aabb, resolution=resolution, levels=levels)
    coarse = torch.rand(levels, 8, 8, 8) < density
    grid.binaries.copy_(
        coarse.repeat_interleave(resolution // 8, 1)
        .repeat_interleave(resolution // 8, 2)
        .repeat_interleave(resolution // 8, 3)
    )
    return grid


def random_rays(count: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    origins = spread * torch.randn(count, 3)
    directions = torch.nn.functional.normalize(0.7 * torch.randn(count, 3) - origins, dim=-1)
    return origins, directions


def dense_march(origins, directions, starts, fars, grid, step, cone) -> list[list[tuple[float, float]]]:
    """The definition, one interval at a time: the recurrence and the voxel at the midpoint."""
    result = []
    reach = float(grid.half_extent.max()) * 2**grid.levels * 4 + float(origins.abs().max())
    for o, d, start, far in zip(origins, directions, starts.tolist(), fars.tolist(), strict=True):
        kept, t = [], start
        while t < min(far, reach):
            end = t + max(step, cone * t)
            middle = (t + end) / 2
            unit = (o.double() + middle * d.double() - grid.center.double()) / grid.half_extent.double()
            level = max(0, math.ceil(math.log2(max(float(unit.abs().max()), 1e-9)) + 1e-12))
            if level < grid.levels and middle < far:
                cell = ((unit / 2**level + 1) / 2 * grid.resolution).long().tolist()
                if grid.binaries[level][tuple(cell)]:
                    kept.append((t, end))
            t = end
        result.append(kept)
    return result


CASES = [  # levels, cone, occupied share, step
    (1, 0.0, 0.3, 0.021),
    (1, 0.0, 1.0, 0.05),
    (1, 0.02, 0.5, 0.01),
    (4, 0.0, 0.2, 0.05),
    (4, 0.01, 0.2, 0.01),
    (3, 1 / 256, 0.1, 0.02),
]
RESOLUTIONS = [32, 40]  # with and without blocks of voxels to jump over, where there are several levels


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize(("levels", "cone", "occupied", "step"), CASES)
def test_numba_and_torch_agree_exactly(levels, cone, occupied, step, resolution):
    grid = random_grid(occupied, levels, resolution)
    origins, directions = random_rays(500)
    directions[::50, 0] = 0  # parallel to a pair of faces
    directions = torch.nn.functional.normalize(directions, dim=-1)
    jitter = torch.rand(500)
    starts, fars = torch.full((500,), 0.1) + jitter * step, 3.0 + 10 * torch.rand(500)
    fast = march_rays(
        origins, directions, torch.full((500,), 0.1), fars, grid, step_size=step, cone_angle=cone, jitter=jitter
    )
    slow = march_rays_torch(RayLattices(origins, directions, starts, fars, step, cone), grid)
    assert len(fast) > 1000
    assert torch.equal(fast.offsets, slow.offsets)
    assert torch.equal(fast.ray_indices, slow.ray_indices)
    tolerance = 0 if cone == 0 else 1e-6  # powers differ in the last bit between libraries
    assert torch.allclose(fast.t_starts, slow.t_starts, rtol=tolerance, atol=0)
    assert torch.allclose(fast.t_ends, slow.t_ends, rtol=tolerance, atol=0)


@pytest.mark.parametrize(("levels", "cone", "occupied", "step"), CASES)
def test_against_the_definition(levels, cone, occupied, step):
    grid = random_grid(occupied, levels)
    origins, directions = random_rays(12)
    nears, fars = torch.full((12,), 0.05), torch.full((12,), 9.0)
    samples = march_rays(origins, directions, nears, fars, grid, step_size=step, cone_angle=cone)
    expected = dense_march(origins, directions, nears, fars, grid, step, cone)
    differing = 0
    for ray, kept in enumerate(expected):
        low, high = samples.offsets[ray : ray + 2].tolist()
        found = list(zip(samples.t_starts[low:high].tolist(), samples.t_ends[low:high].tolist(), strict=True))
        # A midpoint on a voxel's face, to float32's precision, may fall to either side.
        starts = torch.tensor([a for a, _ in found]), torch.tensor([a for a, _ in kept])
        if starts[0].shape == starts[1].shape and torch.allclose(*starts, rtol=1e-5, atol=1e-5):
            continue
        unmatched = {round(a / step, 1) for a, _ in found} ^ {round(a / step, 1) for a, _ in kept}
        differing += len(unmatched)
    assert differing <= 2
    assert sum(map(len, expected)) > 40


def test_devices_without_kernels_are_refused():
    rays = torch.zeros(2, 3, device="meta")
    with pytest.raises(UserError, match=r"got the device meta: train and .* --machine\.device-type cpu"):
        march_rays(rays, rays, rays[:, 0], rays[:, 0], random_grid(1.0).to("meta"), step_size=0.1)


def test_samples_are_sorted_and_continuous_on_the_lattice():
    grid = random_grid(1.0)
    origins, directions = torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    samples = march_rays(origins, directions, torch.zeros(1), torch.tensor([99.0]), grid, step_size=0.03)
    k = torch.round(samples.t_starts / 0.03)
    assert torch.equal(k, torch.arange(int(k[0]), int(k[0]) + len(samples)).float())
    assert torch.allclose(samples.t_ends[:-1], samples.t_starts[1:])
    assert samples.midpoints.min() >= 2.0 - 1e-6
    assert samples.midpoints.max() <= 4.0 + 1e-6
    assert len(samples) == pytest.approx(2 / 0.03, abs=1)


def test_cone_steps_grow_with_distance():
    grid = random_grid(1.0, levels=4)
    origins, directions = torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]])
    samples = march_rays(
        origins, directions, torch.tensor([0.1]), torch.tensor([99.0]), grid, step_size=0.02, cone_angle=0.05
    )
    length = samples.t_ends - samples.t_starts
    assert torch.allclose(length, (0.05 * samples.t_starts).clamp(min=0.02), rtol=1e-4)
    assert samples.t_ends[-1] == pytest.approx(8.0, rel=0.06)  # the outermost of four boxes


def test_rays_that_see_nothing():
    grid = random_grid(0.0)
    origins, directions = random_rays(10)
    fars = torch.full((10,), 9.0)
    assert len(march_rays(origins, directions, torch.zeros(10), fars, grid, step_size=0.1)) == 0
    full = random_grid(1.0)
    for o, d in ([[5.0, 5.0, 0.0], [0.0, 0.0, 1.0]], [[0.0, 0.0, 5.0], [0.0, 0.0, 1.0]]):
        samples = march_rays(torch.tensor([o]), torch.tensor([d]), torch.zeros(1), fars[:1], full, step_size=0.1)
        assert len(samples) == 0
        rays = RayLattices(torch.tensor([o]), torch.tensor([d]), torch.zeros(1), fars[:1], 0.1, 0.0)
        reference = march_rays_torch(rays, full)
        assert len(reference) == 0
        assert reference.offsets.tolist() == [0, 0]
    none = march_rays(torch.empty(0, 3), torch.empty(0, 3), torch.empty(0), torch.empty(0), full, step_size=0.1)
    assert none.offsets.tolist() == [0]


def test_marching_checks_its_arguments():
    grid = random_grid(1.0)
    o, d = random_rays(2)
    near, far = torch.zeros(2), torch.ones(2)
    with pytest.raises(ValueError, match=r"rays must be \[R, 3\]"):
        march_rays(o.T, d.T, near, far, grid, step_size=0.1)
    with pytest.raises(ValueError, match="float32"):
        march_rays(o.double(), d.double(), near, far, grid, step_size=0.1)
    with pytest.raises(ValueError, match="step size must be > 0"):
        march_rays(o, d, near, far, grid, step_size=0.0)
