"""The occupancy grid: what it learns of a density, at which cost, alone and in several processes."""

import math

import pytest
import torch
from torch import Tensor

from hardmine_ns.marching import OccupancyGrid, occupancy
from hardmine_ns.marching.occupancy import locate
from ns_support.concurrency.processes import Processes

UNIT_BOX = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


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


def test_what_was_seen_may_be_told_by_cell():
    torch.manual_seed(0)
    told, noted = (OccupancyGrid(UNIT_BOX, resolution=8, levels=2) for _ in range(2))
    for number in range(4):
        positions, values = torch.rand(300, 3) * 6 - 3, torch.rand(300)
        values[number] = torch.nan
        cells, inside = locate(positions, told)
        by_cell = torch.full((told.num_cells,), -1.0)
        by_cell.scatter_reduce_(0, cells[inside], values.nan_to_num()[inside], "amax")
        for grid, observed in ((told, (positions, values)), (noted, by_cell)):
            torch.manual_seed(number)
            grid.update(lambda x: (x.square().sum(1) < 1).float() * 0.02, 100, observed)
        torch.testing.assert_close(noted.thickness, told.thickness, rtol=1e-6, atol=0)
        assert torch.equal(noted.binaries, told.binaries)
        assert float(noted.mean_there()) == pytest.approx(noted.mean_thickness, rel=1e-5)


def test_a_visited_cell_stands_for_its_neighbours_until_they_are_visited():
    grid = OccupancyGrid(UNIT_BOX, resolution=8, levels=2, blocks_first=True)
    told = grid._next_of_sweep(1).item()
    grid.cursor.zero_()
    grid.update(lambda x: torch.full((len(x),), 0.25), num_cells=1)
    level, x, y, z = told // 512, told // 64 % 8, told // 8 % 8, told % 8
    known = torch.nonzero(grid.thickness.view(2, 8, 8, 8) >= 0)
    assert {tuple(cell) for cell in known.tolist()} == {
        (level, x // 2 * 2 + a, y // 2 * 2 + b, z // 2 * 2 + c) for a in (0, 1) for b in (0, 1) for c in (0, 1)
    }
    for _ in range(2):  # what it was told a cell forgets; what it has found itself it keeps longer
        grid.update(lambda x: torch.full((len(x),), 0.001), num_cells=grid.num_cells)
    assert grid.thickness.max() <= 0.25 * 0.95
    odd = OccupancyGrid(UNIT_BOX, resolution=7, blocks_first=True)
    odd.update(lambda x: torch.full((len(x),), 0.25), num_cells=3)
    assert int((odd.thickness >= 0).sum()) == 3


@pytest.mark.parametrize("cells", [1, 15, 16, 4096, 10_007])
def test_numba_and_torch_decide_alike(cells, monkeypatch):
    torch.manual_seed(0)
    thickness = torch.rand(cells)
    thickness[torch.rand(cells) < 0.3] = -1
    for limit in (0.5, 2.0):
        found = []
        for has_kernels in (True, False):
            monkeypatch.setattr(occupancy, "_has_kernels", lambda _, has=has_kernels: has)
            binaries = torch.zeros(1, cells, 1, 1, dtype=torch.bool)
            occupied = occupancy.mark_occupied(thickness, limit, binaries)
            found.append((occupancy.mean_of_visited(thickness), occupied, binaries))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
        assert found[0][1] == found[1][1] == bool(binaries.any())
        assert torch.equal(found[0][2], found[1][2])
    for has_kernels in (True, False):
        monkeypatch.setattr(occupancy, "_has_kernels", lambda _, has=has_kernels: has)
        assert occupancy.mean_of_visited(torch.full((cells,), -1.0)) == 0.0
        nothing = torch.ones(cells, dtype=torch.bool)
        assert not occupancy.mark_occupied(torch.zeros(cells), 0.01, nothing)
        assert not nothing.any()


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
    grid = OccupancyGrid(UNIT_BOX, resolution=32, levels=2)
    grid.binaries.copy_(torch.rand(grid.binaries.shape) < 0.3)
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


@pytest.mark.parametrize("density", [2.0, 0.0])
def test_what_a_gpu_decides_without_asking_the_host_is_the_same(density, monkeypatch):
    """Also where nothing is left, and all cells are to be looked at anew."""

    def updated():
        torch.manual_seed(0)
        grid = OccupancyGrid(UNIT_BOX, resolution=8)
        for _ in range(2):
            positions = 1.5 * torch.randn(200, 3)  # some of them outside
            grid.update(
                lambda x: density * (x[:, 0] > 0) * torch.rand(len(x)), 300, (positions, density * torch.rand(200))
            )
        return grid

    expected = updated()
    monkeypatch.setattr(occupancy, "_has_kernels", lambda thickness: False)
    monkeypatch.setattr(OccupancyGrid, "_decide", OccupancyGrid._decide_there)
    found = updated()
    assert torch.equal(found.binaries, expected.binaries)
    torch.testing.assert_close(found.thickness, expected.thickness)
    assert bool(found.binaries.all()) == (density == 0)
