"""Marching and compositing, each against a dense computation and against closed forms. Needs torch and numba only."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hardmine_ns.marching import OccupancyGrid, PackedSamples, composite, march_rays, visible_samples
from hardmine_ns.marching.cpu import composite as composite_numba
from hardmine_ns.marching.cpu import composite_backward as composite_backward_numba
from hardmine_ns.marching.lattice import RayLattices
from hardmine_ns.marching.occupancy import locate
from hardmine_ns.marching.reference import composite_backward_torch, composite_torch, march_rays_torch
from hardmine_ns.marching.samples import pack
from ns_support.concurrency.processes import Processes
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


@pytest.mark.parametrize("levels", [1, 3])
def test_random_positions_lie_in_their_cells(levels):
    grid = OccupancyGrid(torch.tensor([-1.0, -2.0, 0.0, 3.0, 2.0, 1.0]), resolution=8, levels=levels)
    cells = torch.arange(grid.num_cells)
    found, inside = locate(grid.random_positions(cells), grid)
    assert inside.all()
    own = found == cells
    assert own[:512].all()
    # Cells of an outer box that an inner box covers are never asked for.
    assert (~own).sum() == (levels - 1) * 64


def test_sweep_visits_every_cell_once():
    grid = OccupancyGrid(UNIT_BOX, resolution=12)
    seen = []
    while len(seen) < grid.num_cells:
        seen += grid._next_of_sweep(100).tolist()
    assert sorted(seen[: grid.num_cells]) == list(range(grid.num_cells))


def test_update_finds_a_ball_at_bounded_cost():
    torch.manual_seed(0)
    grid = OccupancyGrid(UNIT_BOX, resolution=16)
    asked = []

    def ball(x: Tensor) -> Tensor:
        asked.append(len(x))
        return (x.norm(dim=-1) < 0.5).float()

    assert grid.binaries.all()
    grid.update(ball, num_cells=512)
    assert grid.binaries.float().mean() > 0.5  # not yet visited counts as occupied
    for _ in range(39):
        grid.update(ball, num_cells=512)
    assert max(asked) <= 512
    corners = grid.random_positions(torch.arange(grid.num_cells)).norm(dim=-1).view_as(grid.binaries[0])
    assert grid.binaries[0][corners < 0.35].all()
    assert not grid.binaries[0][corners > 0.75].any()


def test_observed_densities_count_without_a_query():
    grid = OccupancyGrid(UNIT_BOX, resolution=8)
    grid.update(lambda x: 1e-3 * torch.rand(len(x)), num_cells=grid.num_cells)
    where, outside = torch.tensor([[0.3, 0.3, 0.3]]), torch.tensor([[9.0, 0.0, 0.0]])
    observed = torch.cat([where, where, outside]), torch.tensor([0.2, 0.5, 7.0])
    grid.update(lambda x: torch.zeros(len(x)), num_cells=1, observed=observed)
    cells, _ = locate(where, grid)
    assert grid.thickness[cells].item() == 0.5
    assert grid.binaries.view(-1)[cells].all()
    assert grid.thickness.max() == 0.5


def test_grid_that_empties_itself_reopens():
    grid = OccupancyGrid(UNIT_BOX, resolution=8)
    grid.update(lambda x: torch.zeros(len(x)), num_cells=grid.num_cells)
    assert grid.binaries.all()
    assert (grid.thickness < 0).all()


def test_non_finite_density_does_not_poison_the_grid():
    grid = OccupancyGrid(UNIT_BOX, resolution=8)
    grid.update(lambda x: torch.full((len(x),), math.nan), num_cells=100)
    assert torch.isfinite(grid.thickness).all()


def test_mean_follows_updates_and_loaded_states():
    grid, other = OccupancyGrid(UNIT_BOX, resolution=8), OccupancyGrid(UNIT_BOX, resolution=8)
    assert grid.mean_thickness == 0.0
    for thickness in (0.25, 0.5):
        grid.update(lambda x, t=thickness: torch.full((len(x),), t), num_cells=grid.num_cells)
        assert grid.mean_thickness == thickness
    assert other.mean_thickness == 0.0
    other.load_state_dict(grid.state_dict())
    assert other.mean_thickness == 0.5


def test_grid_is_saved():
    grid = random_grid(0.3, levels=2)
    grid.update(lambda x: x.norm(dim=-1), num_cells=1000)
    other = OccupancyGrid(UNIT_BOX, resolution=32, levels=2)
    other.load_state_dict(grid.state_dict())
    assert torch.equal(other.binaries, grid.binaries)
    assert other.cursor == grid.cursor == 1000


@pytest.mark.parametrize(
    "arguments",
    [{"aabb": -UNIT_BOX}, {"resolution": 0}, {"levels": 0}, {"levels": 9}, {"levels": 2, "resolution": 6}],
)
def test_grid_checks_its_arguments(arguments):
    with pytest.raises(ValueError, match="got"):
        OccupancyGrid(**{"aabb": UNIT_BOX, "resolution": 8, **arguments})


def test_processes_hold_the_same_grid(run_processes):
    """Each queries its share of the cells; what one observed on its rays, all know."""

    def found(grid, rows, processes=None):
        seen = torch.linspace(-0.9, 0.9, 40)[rows, None].expand(-1, 3).contiguous()
        queried = []

        def inside(positions):
            queried.append(len(positions))
            return (positions.norm(dim=-1) < 10).float() * 0.002

        for _ in range(3):
            grid.update(inside, 100, (seen, seen[:, 0] + 1), processes)
        return grid.thickness.clone(), grid.binaries.clone(), sum(queried)

    thickness, binaries, queried = found(OccupancyGrid(UNIT_BOX, 8), slice(None))

    def work(rank):
        rows = slice(30) if rank == 0 else slice(30, None)
        return found(OccupancyGrid(UNIT_BOX, 8), rows, Processes.current())

    results = run_processes(work)
    for ours, occupied, _ in results:
        assert torch.equal(ours, thickness)
        assert torch.equal(occupied, binaries)
    assert sum(count for *_, count in results) == queried
