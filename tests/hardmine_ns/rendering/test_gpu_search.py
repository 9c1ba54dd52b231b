"""The visibility pass in one kernel: in Triton's interpreter as the one in rounds, and built for absent GPUs."""

import pytest
import torch

from hardmine_ns.hash_encoding import HashEncoding
from hardmine_ns.marching import OccupancyGrid
from hardmine_ns.marching.lattice import RayLattices
from hardmine_ns.marching.occupancy import locate
from hardmine_ns.marching.reference import march_rays_torch
from hardmine_ns.rendering.field import HashField, UnitCube
from hardmine_ns.rendering.visibility import Rays, search

pytest.importorskip("triton")

STEP, RAYS = 0.03, 12
CASES = [
    # levels of the grid, cone angle, whether space is contracted, least transmittance, least opacity
    (1, 0.0, False, 1e-2, 0.0),
    (1, 0.0, False, 0.0, 0.2),
    (3, 0.02, True, 1e-2, 0.15),
]


def made(levels, cone, contracts):
    """A field with some density, a grid that is occupied here and there, and rays of which one misses it."""
    torch.manual_seed(1)
    encoding = HashEncoding(num_levels=6, log2_hashmap_size=9, base_resolution=4, max_resolution=64)
    field = HashField(encoding, hidden_dim=24)
    with torch.no_grad():
        encoding.table.uniform_(-4, 4)
    grid = OccupancyGrid(torch.tensor([-1.0, -0.7, -1.2, 1.0, 0.7, 1.3]), resolution=8, levels=levels)
    grid.binaries.copy_(torch.rand(grid.binaries.shape) < 0.4)
    grid.thickness.uniform_(0, 0.06)
    origins = 3 * torch.randn(RAYS, 3)
    directions = torch.nn.functional.normalize(0.5 * torch.randn(RAYS, 3) - origins, dim=-1)
    origins[:3], directions[:3] = torch.tensor([0.1, 0.2, -4.0]), torch.tensor([0.0, 0.0, 1.0])
    directions[1] = torch.tensor([0.0, 0.0, -1.0])
    starts = 0.1 + torch.rand(RAYS) * STEP
    fars = torch.full((RAYS,), 9.0)
    fars[4] = 3.0
    rays = RayLattices(origins, directions, starts, fars, STEP, cone)
    return field, grid, rays, UnitCube(grid.center, grid.half_extent, contracts)


def wanted(field, grid, rays, to_unit, early_stop, alpha):
    samples = march_rays_torch(rays, grid)
    return search(
        field, samples, Rays(rays.origins, rays.directions), to_unit, early_stop, alpha, first_round=16,
        keep_features=True,
    )  # fmt: skip


@pytest.mark.interpreted
@pytest.mark.parametrize(("levels", "cone", "contracts", "early_stop", "alpha"), CASES)
def test_finds_what_the_rounds_find(levels, cone, contracts, early_stop, alpha):
    from hardmine_ns.rendering.gpu.launch import Limits, visible_of_rays

    field, grid, rays, to_unit = made(levels, cone, contracts)
    alpha = min(alpha, float(grid.mean_there()))
    expected = wanted(field, grid, rays, to_unit, early_stop, alpha)
    observed = torch.full((grid.num_cells,), -1.0)
    limits = Limits(early_stop, 2 * alpha)  # of which no more than the grid's mean counts
    report = torch.zeros(2, dtype=torch.float64)
    found = visible_of_rays(field, rays, grid, limits, 1024, report, contracts=contracts, observed=observed)
    number = len(expected.samples)
    assert RAYS * 2 < number < 1024
    assert report[0] == number
    assert found.kept.tolist() == [1.0] * RAYS
    assert torch.equal(found.samples.offsets, expected.samples.offsets)
    assert found.looked_up[1] == 0 < found.looked_up[0]
    assert report[1] == found.looked_up.sum()
    assert number <= report[1]
    pairs = [
        (found.samples.ray_indices, expected.samples.ray_indices),
        (found.samples.t_starts, expected.samples.t_starts),
        (found.samples.t_ends, expected.samples.t_ends),
        (found.samples.midpoints, expected.samples.midpoints),
        (found.unit_positions, expected.unit_positions),
        (found.features, expected.features),
        (found.geometry, expected.geometry),
    ]
    for own, theirs in pairs:
        torch.testing.assert_close(own[:number], theirs, rtol=1e-4, atol=2e-4)
        assert not own[number:].any()
    # Each evaluated sample is remembered in its cell, and nothing else is.
    cells, inside = locate(expected.samples.positions(rays.origins, rays.directions), grid)
    assert inside.all()
    thickest = torch.full_like(observed, -1.0).scatter_reduce(0, cells, expected.densities * STEP, "amax")
    assert (observed >= thickest - 1e-3 * thickest.abs()).all()
    assert int((observed >= 0).sum()) <= report[1]
    assert not observed[~grid.binaries.flatten()].ge(0).any()


@pytest.mark.interpreted
def test_rays_without_room_are_left_out():
    from hardmine_ns.rendering.gpu.launch import Limits, visible_of_rays

    field, grid, rays, to_unit = made(1, 0.0, False)
    expected = wanted(field, grid, rays, to_unit, 1e-2, 0.0)
    counts = expected.samples.offsets.diff()
    report = torch.zeros(2, dtype=torch.float64)
    found = visible_of_rays(field, rays, grid, Limits(1e-2, 0.0), 64, report, contracts=False)
    assert report[0] == len(expected.samples) > 64
    assert 0 < found.kept.sum() < RAYS
    offsets = found.samples.offsets
    assert offsets[-1] <= 64
    for ray in range(RAYS):
        own = slice(int(offsets[ray]), int(offsets[ray + 1]))
        if found.kept[ray]:
            theirs = slice(int(expected.samples.offsets[ray]), int(expected.samples.offsets[ray + 1]))
            assert offsets[ray + 1] - offsets[ray] == counts[ray]
            torch.testing.assert_close(found.geometry[own], expected.geometry[theirs], rtol=1e-4, atol=2e-4)
        else:  # at most samples of no length
            assert not (found.samples.t_ends - found.samples.t_starts)[own].any()


@pytest.mark.interpreted
def test_no_rays_and_densities_that_are_not_finite():
    from hardmine_ns.rendering.gpu.launch import Limits, visible_of_rays

    field, grid, rays, _ = made(1, 0.0, False)
    none = RayLattices(*(tensor[:0] for tensor in rays[:4]), STEP, 0.0)
    report = torch.ones(2, dtype=torch.float64)
    found = visible_of_rays(field, none, grid, Limits(1e-2, 0.0), 64, report, contracts=False)
    assert found.samples.offsets.tolist() == [0]
    assert report.tolist() == [0.0, 0.0]
    with torch.no_grad():
        field.density_net.layers[1].weight[0] *= 1e6
    found = visible_of_rays(field, rays, grid, Limits(1e-2, 0.0), 1024, report, contracts=False)
    # An infinite density is visible, and the last that its ray shows.
    infinite = found.geometry[:, 0] > 100
    last = torch.zeros_like(infinite)
    last[(found.samples.offsets[1:] - 1)[found.samples.offsets.diff() > 0]] = True
    assert infinite.sum() > 3
    assert last[infinite].all()


FLOATS = (
    "origins directions starts fars box mean table scales first_layer second_layer intervals units outputs features"
)
FLOATS += " observed t_starts t_ends t_middles out_units out_outputs out_features kept"
TYPES = dict.fromkeys(FLOATS.split(), "*fp32") | dict.fromkeys(["numbers", "report"], "*fp64")
TYPES |= dict.fromkeys(["counters", "counts", "looked_up", "ends", "ray_indices", "offsets"], "*i64")
TYPES |= {"binaries": "*u8", "lost": "*u8", "geometry": "*i32", "places": "*i32"}
TYPES |= dict.fromkeys(["levels", "resolution", "capacity", "num_rays"], "i32")
TYPES |= dict.fromkeys(["step", "early_stop", "alpha_threshold"], "fp32")


@pytest.mark.parametrize("unbounded", [False, True])
@pytest.mark.parametrize("inputs", [32, *(pytest.param(width, marks=pytest.mark.slow) for width in (8, 24, 64))])
def test_search_builds_without_spilling(inputs, unbounded, capability, triton_build):
    from hardmine_ns.rendering.gpu import launch

    constants = {"CONE": unbounded, "CONTRACTS": unbounded, "OBSERVES": True, "F": 2, "HIDDEN": 64}
    options = launch._widths(inputs) | launch._search_options(inputs)
    warps = options.pop("num_warps")
    del options["enable_fp_fusion"]
    build = triton_build(launch.search_kernel, TYPES, constants | options, capability, warps)
    assert build.spilled <= 16
    assert build.shared <= 24 << 10


def test_ordering_builds_without_spilling(capability, triton_build):
    from hardmine_ns.rendering.gpu import launch

    build = triton_build(launch.order_kernel, TYPES, launch._widths(32) | {"BLOCK": 64}, capability, 2)
    assert build.spilled == 0
    assert build.registers <= 128
