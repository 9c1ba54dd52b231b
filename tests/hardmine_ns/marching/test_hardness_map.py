"""The map of hardness: what it remembers, which strides follow, what is saved. Needs torch and numba only."""

import pytest
import torch
from torch import nn

from hardmine_ns.marching import HardnessMap, OccupancyGrid, PackedSamples, march_rays, merge_thin
from hardmine_ns.marching.cpu import merging as cpu
from hardmine_ns.marching.hardness_map import RATE, UNKNOWN_STRIDE, strides
from hardmine_ns.marching.merging import WHOLE
from hardmine_ns.marching.occupancy import locate
from hardmine_ns.marching.reference import learn_hardness_torch, starts_of_groups_torch
from hardmine_ns.marching.samples import pack
from ns_support.concurrency.processes import Processes

BOX = torch.tensor([-1.0, -0.7, -1.3, 1.0, 0.7, 1.3])
STEP, ALONE = 0.02, Processes()


def test_strides_by_hand():
    hardness = torch.tensor([4.0, 2.7, 2.6, 1.0, 0.5, 0.3, 0.0, -1.0, 100.0])
    assert strides(hardness, 4.0, 8).tolist() == [1, 1, 2, 4, 8, 8, 8, UNKNOWN_STRIDE, 1]
    assert strides(hardness, 4.0, 3).tolist() == [1, 1, 2, 3, 3, 3, 3, 3, 1]
    assert strides(torch.tensor([0.0, 1.0]), 0.0, 8).tolist() == [8, 1]
    assert strides(torch.tensor([-1.0]), -1.0, 8).tolist() == [UNKNOWN_STRIDE]  # before the first step


def scene(levels: int, cone: float) -> tuple[PackedSamples, torch.Tensor, torch.Tensor, OccupancyGrid, torch.Tensor]:
    """Rays through a grid, and a hardness of its cells, of which some are unknown and some have none."""
    torch.manual_seed(0)
    grid = OccupancyGrid(BOX, resolution=16, levels=levels)
    grid.binaries.copy_((torch.rand(grid.num_cells) < 0.7).view_as(grid.binaries))
    hardness = 10 ** (3 * torch.rand(grid.num_cells) - 2)
    hardness[torch.rand(grid.num_cells) < 0.1] = -1
    hardness[torch.rand(grid.num_cells) < 0.1] = 0
    origins = 3 * torch.randn(300, 3)
    directions = nn.functional.normalize(0.7 * torch.randn(300, 3) - origins, dim=-1)
    nears, fars = torch.full((300,), 0.1), torch.full((300,), 9.0)
    samples = march_rays(origins, directions, nears, fars, grid, step_size=STEP, cone_angle=cone)
    return samples, origins, directions, grid, hardness


@pytest.mark.parametrize(("levels", "cone"), [(1, 0.0), (3, 0.02)])
@pytest.mark.parametrize("most", [2, 8])
def test_numba_and_torch_merge_alike(levels, cone, most):
    samples, origins, directions, grid, hardness = scene(levels, cone)
    cells, _ = locate(samples.positions(origins, directions), grid)
    expected = starts_of_groups_torch(samples, 1 / strides(hardness[cells], 0.5, most), WHOLE, most)
    numbers = (WHOLE, UNKNOWN_STRIDE, most)
    found = cpu.starts_of_groups(samples, (origins, directions), grid, STEP, numbers, (hardness, 0.5))
    assert torch.equal(found, expected)
    assert 0.2 < expected.float().mean() < 0.95


@pytest.mark.parametrize("cone", [0.0, 0.02])
@pytest.mark.parametrize("stride", [*range(1, 9), 10, 26])
def test_as_many_intervals_as_the_stride_says_become_one(stride, cone):
    grid = OccupancyGrid(BOX, resolution=16)
    origins, directions = torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    march = {"step_size": STEP, "cone_angle": cone}
    samples = march_rays(origins, directions, torch.zeros(1), torch.tensor([9.0]), grid, **march)
    known = torch.full((grid.num_cells,), 2.0), 2.0 * stride
    merged = merge_thin(samples, origins, directions, grid, STEP, most=32, hardness=known)
    assert len(merged) == -(-len(samples) // stride)
    unknown = merge_thin(samples, origins, directions, grid, STEP, hardness=(-known[0], 1.0))
    assert len(unknown) == -(-len(samples) // UNKNOWN_STRIDE)


def test_what_is_hard_stays_alone_beside_what_is_easy():
    samples, origins, directions, grid, hardness = scene(1, 0.0)
    cells, _ = locate(samples.positions(origins, directions), grid)
    hard = samples.t_starts[strides(hardness[cells], 0.5, 8) == 1]
    merged = merge_thin(samples, origins, directions, grid, STEP, hardness=(hardness, 0.5))
    alone = merged.t_starts[merged.t_ends - merged.t_starts < 1.5 * STEP]
    assert len(hard) > 300
    assert torch.isin(hard, alone).all()
    assert len(merged) < 0.7 * len(samples)


@pytest.mark.parametrize("levels", [1, 3])
def test_numba_and_torch_learn_alike(levels):
    *_, grid, hardness = scene(levels, 0.0)
    positions = 2 * torch.randn(4000, 3)  # some are outside
    positions[2000:] = positions[:20].repeat(100, 1) * 0.2  # many in the same cells
    found = torch.rand(4000)
    cells, inside = locate(positions, grid)
    assert 0.1 < inside.float().mean() < 1
    expected = learn_hardness_torch(hardness, cells[inside], found[inside], RATE)
    cpu.learn_hardness(hardness, positions, found, grid, RATE)
    torch.testing.assert_close(hardness, expected, rtol=1e-6, atol=0)


def step_of(own: HardnessMap, hardness: list[float]) -> None:
    """Four samples at the centre and a corner of the grid were looked up; the second and the fourth are visible."""
    positions = torch.tensor([[0.01, 0.01, 0.01], [0.01, 0.01, 0.01], [0.99, 0.69, 1.29], [0.99, 0.69, 1.29]])
    visible, ends = torch.tensor([1, 3]), torch.tensor([2.5, 4.0])
    samples = pack(torch.tensor([2.0, 3.0]), ends, torch.tensor([0, 2]), 10)
    own.watch(positions, visible, samples, 10)(torch.tensor(hardness))


def test_a_step_is_learnt_by_the_rule():
    grid = OccupancyGrid(BOX, resolution=4)
    own, cells = HardnessMap(grid.num_cells), locate(torch.tensor([[0.01] * 3, [0.99, 0.69, 1.29]]), grid)[0]
    assert own.known[1] == -1
    step_of(own, [1.0, 3.0])
    own.learn(grid, ALONE)
    # N g / d is 10 * 1 / 0.5 = 20 and 10 * 3 / 1 = 30, each after a hidden sample, which was the first of its cell.
    assert own.values[cells].tolist() == pytest.approx([0.2 * 20, 0.2 * 30])
    assert (own.values == -1).sum() == grid.num_cells - 2
    assert float(own.mean) == pytest.approx(10 * (1 + 3) / 1.5)
    step_of(own, [0.5, 0.0])
    own.learn(grid, ALONE)
    expected = [4 * 0.8 + 0.2 * (10 - 4 * 0.8), 6 * 0.8 * 0.8]
    assert own.values[cells].tolist() == pytest.approx(expected)
    assert float(own.mean) == pytest.approx(0.9 * 40 / 1.5 + 0.1 * 5 / 1.5)
    before = own.values.clone(), float(own.mean)
    own.learn(grid, ALONE)  # no step in between
    step_of(own, [torch.nan, 1.0])
    own.learn(grid, ALONE)
    own.watch(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), pack(*torch.zeros(3, 0), 10), 10)(torch.zeros(0))
    own.learn(grid, ALONE)
    assert torch.equal(own.values, before[0])
    assert float(own.mean) == before[1]


def test_a_map_of_no_cells_does_nothing():
    own, grid = HardnessMap(0), OccupancyGrid(BOX, resolution=4)
    assert own.known is None
    assert own.watch(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), pack(*torch.zeros(3, 0), 1), 1) is None
    own.learn(grid, ALONE)
    assert own.state_dict() == {}


class Model(nn.Module):
    def __init__(self, cells: int) -> None:
        super().__init__()
        self.hardness_map, self.other = HardnessMap(cells), nn.Linear(1, 1)


def test_checkpoints_hold_the_map_and_need_not():
    torch.manual_seed(0)
    saved, other = Model(64), Model(64)
    saved.hardness_map.values.copy_(torch.rand(64))
    saved.hardness_map.mean.fill_(0.3)
    state = saved.state_dict()
    assert {"hardness_map.values", "hardness_map.mean"} <= state.keys()
    other.load_state_dict(dict(state))
    assert torch.equal(other.hardness_map.values, saved.hardness_map.values)
    assert other.hardness_map.known[1] == pytest.approx(0.3)
    Model(0).load_state_dict(dict(state))  # without one
    other.load_state_dict({}, strict=False)  # as nerfstudio does after it has loaded the model
    assert torch.equal(other.hardness_map.values, saved.hardness_map.values)
    new = Model(64)
    new.load_state_dict(Model(0).state_dict())  # of a run by thickness, or of an earlier version
    assert (new.hardness_map.values == -1).all()
    assert new.hardness_map.known[1] == -1
    larger = Model(128)
    larger.hardness_map.values.fill_(5)
    larger.load_state_dict(dict(state))
    assert (larger.hardness_map.values == -1).all()


def test_processes_learn_what_all_have_found(run_processes):
    grid = OccupancyGrid(BOX, resolution=4)
    alone = HardnessMap(grid.num_cells)
    step_of(alone, [1.0, 3.0])
    alone.learn(grid, ALONE)

    def work(rank):
        own = HardnessMap(grid.num_cells)
        if rank == 1:  # the other has no sample
            step_of(own, [1.0, 3.0])
        own.learn(grid, Processes.current())
        return own.values, float(own.mean)

    for values, mean in run_processes(work):
        assert torch.equal(values, alone.values)
        assert mean == float(alone.mean)


def test_rays_on_another_device_are_refused():
    samples, origins, directions, grid, hardness = scene(1, 0.0)
    with pytest.raises(ValueError, match="merged by hardness on a CPU only, got rays on meta"):
        merge_thin(samples, origins.to("meta"), directions.to("meta"), grid, STEP, hardness=(hardness, 1.0))
