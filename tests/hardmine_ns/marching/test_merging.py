"""Merging of thin samples: the rule, its back ends, and what it must not change. Needs torch and numba only."""

import pytest
import torch

from hardmine_ns.marching import OccupancyGrid, PackedSamples, march_rays, merge_thin
from hardmine_ns.marching.cpu import merging as cpu
from hardmine_ns.marching.merging import UNKNOWN_MERGED, expected_thickness, starts_of_groups_triton
from hardmine_ns.marching.reference import starts_of_groups_torch

BOX = torch.tensor([-1.0, -0.7, -1.3, 1.0, 0.7, 1.3])
LIMIT, STEP = 0.04, 0.02


def scene(levels: int, cone: float, rays: int = 300) -> tuple[PackedSamples, torch.Tensor, torch.Tensor, OccupancyGrid]:
    """Rays through a grid of which a third is empty and some was never visited."""
    torch.manual_seed(0)
    grid = OccupancyGrid(BOX, resolution=16, levels=levels)
    grid.thickness.copy_(10 ** (4 * torch.rand(grid.num_cells) - 4))
    grid.thickness[torch.rand(grid.num_cells) < 0.1] = -1
    grid.binaries.copy_((torch.rand(grid.num_cells) < 0.7).view_as(grid.binaries))
    origins = 3 * torch.randn(rays, 3)
    directions = torch.nn.functional.normalize(0.7 * torch.randn(rays, 3) - origins, dim=-1)
    nears, fars = torch.full((rays,), 0.1), torch.full((rays,), 9.0)
    samples = march_rays(origins, directions, nears, fars, grid, step_size=STEP, cone_angle=cone)
    assert len(samples) > 5 * rays
    return samples, origins, directions, grid


def by_hand(samples: PackedSamples, thickness: list[float], limit: float, most: int) -> list[bool]:
    firsts: list[bool] = []
    for ray in range(samples.num_rays):
        group: list[int] = []
        for i in range(int(samples.offsets[ray]), int(samples.offsets[ray + 1])):
            touches = bool(group) and samples.t_ends[i - 1] == samples.t_starts[i]
            total = float(torch.tensor([thickness[j] for j in [*group, i]]).cumsum(0)[-1])
            joins = touches and len(group) < most and total <= torch.tensor(limit).item()
            group = [*group, i] if joins else [i]
            firsts.append(not joins)
    return firsts


@pytest.mark.parametrize(("levels", "cone"), [(1, 0.0), (3, 0.0), (3, 0.02)])
@pytest.mark.parametrize("most", [2, 8])
def test_numba_and_torch_agree_exactly(levels, cone, most):
    samples, origins, directions, grid = scene(levels, cone)
    thickness = expected_thickness(samples, origins, directions, grid, STEP, LIMIT)
    expected = starts_of_groups_torch(samples, thickness, LIMIT, most)
    numbers = (LIMIT, UNKNOWN_MERGED, most)
    assert torch.equal(cpu.starts_of_groups(samples, (origins, directions), grid, STEP, numbers), expected)
    assert 0.2 < expected.float().mean() < 0.95


def test_the_rule_by_hand():
    samples, origins, directions, grid = scene(1, 0.0, rays=40)
    thickness = expected_thickness(samples, origins, directions, grid, STEP, LIMIT)
    assert starts_of_groups_torch(samples, thickness, LIMIT, 5).tolist() == by_hand(
        samples, thickness.tolist(), LIMIT, 5
    )


@pytest.mark.interpreted
@pytest.mark.parametrize("most", [2, 8])
def test_triton_and_torch_agree_exactly(most):
    pytest.importorskip("triton")
    samples, origins, directions, grid = scene(3, 0.02, rays=12)
    thickness = expected_thickness(samples, origins, directions, grid, STEP, LIMIT)
    expected = starts_of_groups_torch(samples, thickness, LIMIT, most)
    assert torch.equal(starts_of_groups_triton(samples, thickness, LIMIT, most), expected)


def test_merged_samples_cover_what_the_single_ones_did():
    samples, origins, directions, grid = scene(3, 0.02)
    merged = merge_thin(samples, origins, directions, grid, STEP)
    assert len(merged) < 0.9 * len(samples)
    before, after = samples.t_ends - samples.t_starts, merged.t_ends - merged.t_starts
    total = torch.zeros(samples.num_rays).index_add_(0, samples.ray_indices, before)
    torch.testing.assert_close(torch.zeros(samples.num_rays).index_add_(0, merged.ray_indices, after), total)
    assert (merged.midpoints >= merged.t_starts).all()
    assert (merged.midpoints <= merged.t_ends).all()
    assert torch.equal(merged.ray_indices, torch.repeat_interleave(merged.offsets.diff()))


def test_a_surface_is_sampled_as_finely_as_before():
    samples, origins, directions, grid = scene(1, 0.0)
    grid.thickness.fill_(2 * LIMIT)
    merged = merge_thin(samples, origins, directions, grid, STEP)
    assert torch.equal(merged.t_starts, samples.t_starts)
    assert torch.equal(merged.midpoints, samples.midpoints)


def test_unknown_space_is_crossed_in_steps_of_four():
    grid = OccupancyGrid(BOX, resolution=16)
    origins, directions = torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    samples = march_rays(origins, directions, torch.zeros(1), torch.tensor([9.0]), grid, step_size=STEP)
    merged = merge_thin(samples, origins, directions, grid, STEP)
    assert len(merged) == -(-len(samples) // UNKNOWN_MERGED)


def test_the_place_of_a_merged_sample_is_uniform():
    torch.manual_seed(0)
    grid = OccupancyGrid(BOX, resolution=16)
    origins = torch.tensor([[0.0, 0.0, -3.0]]).expand(2000, 3).contiguous()
    directions = torch.tensor([[0.0, 0.0, 1.0]]).expand(2000, 3).contiguous()
    samples = march_rays(origins, directions, torch.zeros(2000), torch.full((2000,), 9.0), grid, step_size=STEP)
    merged = merge_thin(samples, origins, directions, grid, STEP)
    merged = merged.select(torch.nonzero(merged.t_ends - merged.t_starts > 3.5 * STEP)[:, 0])
    place = (merged.midpoints - merged.t_starts) / (merged.t_ends - merged.t_starts)
    assert len(place) > 10_000
    assert float(place.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(place.var()) == pytest.approx(1 / 12, abs=0.003)


def test_nothing_to_merge():
    samples, origins, directions, grid = scene(1, 0.0)
    assert merge_thin(samples, origins, directions, grid, STEP, most=1) is samples
    none = samples.select(torch.zeros(0, dtype=torch.int64))
    assert len(merge_thin(none, origins, directions, grid, STEP)) == 0


@pytest.mark.parametrize("wrong", [{"limit": 0.0}, {"most": 0}])
def test_settings_out_of_range(wrong):
    samples, origins, directions, grid = scene(1, 0.0)
    with pytest.raises(ValueError, match="must be > 0 and most >= 1"):
        merge_thin(samples, origins, directions, grid, STEP, **wrong)
