"""The kernels of the visibility pass and of the networks against what any device runs. Needs torch and numba only."""

from itertools import pairwise

import pytest
import torch

from hardmine_ns.hash_encoding import HashEncoding
from hardmine_ns.marching import OccupancyGrid, PackedSamples, march_rays, merge_thin
from hardmine_ns.rendering.cpu import networks
from hardmine_ns.rendering.field import HashField, UnitCube, spherical_harmonics
from hardmine_ns.rendering.visibility import Rays, render_visible, search
from ns_support.kernels.arrays import as_array

CENTER, HALF = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([1.0, 2.0, 0.5])


def make_field(hidden_dim=16, **appearance):
    torch.manual_seed(0)
    encoding = HashEncoding(num_levels=4, log2_hashmap_size=12, max_resolution=64)
    with torch.no_grad():
        encoding.table.uniform_(-1, 1)  # else everything is the same fog
        field = HashField(encoding, hidden_dim=hidden_dim, **appearance)
        field.density_net.layers[-1].weight.mul_(8)
    return field


def make_rays(number=200):
    torch.manual_seed(1)
    origins = 3 * torch.nn.functional.normalize(torch.randn(number, 3), dim=-1)
    return Rays(origins, torch.nn.functional.normalize(0.5 * torch.randn(number, 3) - origins, dim=-1))


def march(rays, levels=1, merge=False):
    grid = OccupancyGrid(torch.cat([CENTER - HALF, CENTER + HALF]), resolution=8, levels=levels)
    n = len(rays.origins)
    bounds = torch.zeros(n), torch.full((n,), 20.0)
    samples = march_rays(rays.origins, rays.directions, *bounds, grid, step_size=0.02, cone_angle=0.01 * (levels > 1))
    return merge_thin(samples, rays.origins, rays.directions, grid, 0.02, limit=0.04, most=4) if merge else samples


def by_torch(function):
    """The same mapping, not known to be a cube's: any device's code runs."""
    return lambda positions: function(positions)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("contracts", [False, True])
@pytest.mark.parametrize("limits", [(0.0, 0.0), (1e-2, 0.0), (1e-4, 0.05), (1.0, 0.0)])
def test_search_by_kernels_finds_what_torch_finds(limits, contracts, merge):
    field, rays = make_field(), make_rays()
    samples = march(rays, 3 if contracts else 1, merge)
    cube = UnitCube(CENTER, HALF, contracts)
    found = search(field, samples, rays, cube, *limits, keep_features=True)
    expected = search(field, samples, rays, by_torch(cube), *limits, keep_features=True)
    assert 0 < len(found.samples) <= len(samples)
    assert torch.equal(found.samples.ray_indices, expected.samples.ray_indices)
    assert torch.equal(found.samples.offsets, expected.samples.offsets)
    for name in ("t_starts", "t_ends", "midpoints"):
        assert torch.equal(getattr(found.samples, name), getattr(expected.samples, name)), name
    for name in ("unit_positions", "geometry", "features", "densities"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-3), name
    for ours, theirs in zip(found.searched, expected.searched, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(
            render_visible(field, found, rays).color, render_visible(field, expected, rays).color, atol=1e-4
        )


def test_number_of_threads_changes_nothing():
    field, rays, cube = make_field(), make_rays(700), UnitCube(CENTER, HALF, True)
    samples, results, before = march(rays, 3), [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = search(field, samples, rays, cube, keep_features=True)
            results.append([found.geometry, found.features, found.samples.offsets, *found.searched])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_nothing_to_search():
    field, rays, cube = make_field(), make_rays(3), UnitCube(CENTER, HALF, False)
    nothing = torch.empty(0)
    samples = PackedSamples(nothing, nothing, torch.empty(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    found = search(field, samples, rays, cube, keep_features=True)
    assert len(found.samples) == 0
    assert found.samples.num_rays == 3
    assert [len(x) for x in (found.unit_positions, found.geometry, found.features, *found.searched)] == [0] * 5


def test_a_ray_that_is_not_finite_leaves_the_others_alone():
    field, rays, cube = make_field(), make_rays(40), UnitCube(CENTER, HALF, True)
    samples = march(rays, 3)
    expected = search(field, samples, rays, cube)
    rays.origins[7] = float("nan")
    found = search(field, samples, rays, cube)
    own = expected.samples.ray_indices != 7
    assert own.any()
    assert not own.all()
    assert torch.equal(found.geometry[found.samples.ray_indices != 7], expected.geometry[own])
    assert found.geometry[found.samples.ray_indices == 7].isnan().any(-1).all()


@pytest.mark.parametrize("sizes", [(24, 64, 16), (8, 16, 16), (5, 20, 7), (63, 200, 3), (1, 1, 1), (32, 64, 64, 3)])
@pytest.mark.parametrize("rows", [0, 1, 8, 1003])
def test_networks(sizes, rows):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
    x, output = torch.randn(rows, sizes[0]), torch.full((rows, sizes[-1]), torch.nan)
    with torch.no_grad():
        expected = x
        for layer in layers[:-1]:
            expected = torch.relu(layer(expected))
        expected = layers[-1](expected)
    weights = [layer.weight for layer in layers]
    assert networks.fits(weights)
    networks.run(as_array(x), networks.packed(weights), as_array(output))
    assert torch.allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_in_its_row():
    x, output = torch.ones(10, 4), torch.zeros(10, 2)
    x[3, 1], x[6, 2] = torch.nan, torch.inf
    weights = [torch.ones(16, 4), torch.ones(2, 16)]
    networks.run(as_array(x), networks.packed(weights), as_array(output))
    assert output[3].isnan().all()
    assert output[6].isinf().all()
    assert torch.equal(output[[0, 2, 4, 9]], torch.full((4, 2), 64.0))


@pytest.mark.parametrize("appearance", [{}, {"num_images": 5, "appearance_dim": 7}])
def test_colors_on_rays(appearance):
    field = make_field(**appearance)
    ray = torch.randint(30, (500,))
    harmonics = spherical_harmonics(torch.nn.functional.normalize(torch.randn(30, 3), dim=-1))
    geometry, of_rays = torch.randn(500, 16), field.appearance_of(torch.randint(5, (30,)))
    expected = field.color(geometry, harmonics[ray], None if of_rays is None else of_rays[ray])
    with torch.no_grad():
        found = field.color_on_rays(geometry, ray, harmonics, of_rays)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert field.color_on_rays(geometry, ray, harmonics, of_rays).requires_grad


def test_networks_that_the_kernels_do_not_take_run_in_torch():
    field, rays, cube = make_field(hidden_dim=300), make_rays(20), UnitCube(CENTER, HALF, False)
    with torch.no_grad():
        assert not field.has_kernels
    assert len(search(field, march(rays), rays, cube).samples) > 0
    field = make_field()
    with torch.no_grad():
        assert field.has_kernels
        with torch.autocast("cpu", torch.bfloat16):
            assert not field.has_kernels
    assert not field.has_kernels  # with a graph
