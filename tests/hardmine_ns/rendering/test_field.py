"""The field and the rendering around it, on a scene small enough to check by hand. Needs torch and numba only."""

import math

import pytest
import torch

from hardmine_ns.hash_encoding import HashEncoding
from hardmine_ns.marching import OccupancyGrid, composite, march_rays
from hardmine_ns.mining import HardSampleMining
from hardmine_ns.rendering.field import HashField, UnitCube, spherical_harmonics, truncated_exp
from hardmine_ns.rendering.visibility import Rays, groups_of_rays, render_visible, search

BOX = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


to_unit = UnitCube(torch.zeros(3), torch.ones(3), contracts=False)


@pytest.fixture
def field() -> HashField:
    torch.manual_seed(0)
    encoding = HashEncoding(num_levels=4, log2_hashmap_size=12, max_resolution=64)
    with torch.no_grad():
        encoding.table.uniform_(-1, 1)  # else everything is the same fog
        field = HashField(encoding, hidden_dim=16)
        field.density_net.layers[-1].weight.mul_(8)
    return field


@pytest.fixture
def rays() -> Rays:
    torch.manual_seed(1)
    origins = 3 * torch.nn.functional.normalize(torch.randn(40, 3), dim=-1)
    return Rays(origins, torch.nn.functional.normalize(0.5 * torch.randn(40, 3) - origins, dim=-1))


def march(rays: Rays, step: float = 0.02):
    grid = OccupancyGrid(BOX, resolution=8)
    n = len(rays.origins)
    return march_rays(rays.origins, rays.directions, torch.zeros(n), torch.full((n,), 9.0), grid, step_size=step)


def plain_render(field, samples, rays):
    """Without search or mining: all samples, with a graph."""
    ray = samples.ray_indices
    geometry = field.geometry(to_unit(samples.positions(rays.origins, rays.directions)))
    raw = field.color(geometry, spherical_harmonics(rays.directions)[ray])
    return composite(truncated_exp(geometry[:, 0]), torch.sigmoid(raw), samples)


def test_spherical_harmonics_are_orthonormal():
    torch.manual_seed(0)
    d = torch.nn.functional.normalize(torch.randn(200_000, 3, dtype=torch.float64), dim=-1)
    y = spherical_harmonics(d)
    gram = 4 * math.pi * y.T @ y / len(d)
    assert (gram - torch.eye(16, dtype=torch.float64)).abs().max() < 0.05


def test_truncated_exp():
    x = torch.tensor([-50.0, -1.0, 0.0, 3.0, 30.0], requires_grad=True)
    y = truncated_exp(x)
    assert torch.equal(y, torch.exp(x))
    y.sum().backward()
    assert x.grad.tolist() == pytest.approx(torch.exp(x.detach().clamp(-15, 15)).tolist())


def test_search_keeps_what_is_visible(field, rays):
    samples = march(rays)
    everything = search(field, samples, rays, to_unit, early_stop=0.0)
    assert len(everything.samples) == len(everything.searched[1]) == len(samples)
    found = search(field, samples, rays, to_unit, early_stop=1e-3)
    assert 0 < len(found.samples) < len(samples)
    assert len(found.samples) <= len(found.searched[1]) < len(samples)
    expected = plain_render(field, samples, rays)
    actual = render_visible(field, found, rays)
    assert (actual.color - expected.color).abs().max() < 1e-3
    assert (actual.accumulation - expected.accumulation).abs().max() < 1e-3


def test_geometry_follows_its_sample(field, rays):
    found = search(field, march(rays), rays, to_unit, early_stop=1e-2)
    positions = to_unit(found.samples.positions(rays.origins, rays.directions))
    assert torch.allclose(found.unit_positions, positions, atol=1e-6)
    assert torch.allclose(found.geometry, field.geometry(positions), atol=1e-4)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("rule", ["off", "poisson", "multinomial", "topk"])
def test_merged_search_and_mining_give_the_plain_gradient_at_fraction_one(field, rays, rule, keep):
    samples = march(rays)
    target = torch.rand(len(rays.origins), 3)
    (plain_render(field, samples, rays).color - target).square().mean().backward()
    expected = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in field.parameters()]
    field.zero_grad()
    mining = HardSampleMining(rule, 1.0, 1.0)
    visible = search(field, samples, rays, to_unit, early_stop=0.0, keep_features=keep)
    result = render_visible(field, visible, rays, mining)
    (result.color - target).square().mean().backward()
    for p, e in zip(field.parameters(), expected, strict=True):
        actual = p.grad.to_dense() if p.grad.is_sparse else p.grad
        assert (actual - e).abs().max() <= 1e-4 * e.abs().max()


def test_features_of_the_search_change_nothing_but_the_cost(field, rays):
    """The second run on half of the samples, from the look-ups of the search and from its own."""
    target = torch.rand(len(rays.origins), 3)
    gradients = []
    for keep in (False, True):
        field.zero_grad()
        mining = HardSampleMining("topk", 0.5, 0.5)
        visible = search(field, march(rays), rays, to_unit, keep_features=keep)
        (render_visible(field, visible, rays, mining).color - target).square().mean().backward()
        assert 0.4 < mining.statistics.fraction <= 0.5
        gradients.append([p.grad.to_dense() if p.grad.is_sparse else p.grad.clone() for p in field.parameters()])
    for without, with_features in zip(*gradients, strict=True):
        assert without.abs().max() > 0
        assert (with_features - without).abs().max() <= 1e-5 * without.abs().max()


def test_no_visible_sample(field, rays):
    grid = OccupancyGrid(BOX, resolution=8)
    grid.binaries.zero_()
    n = len(rays.origins)
    samples = march_rays(rays.origins, rays.directions, torch.zeros(n), torch.full((n,), 9.0), grid, step_size=0.1)
    for rule in ("poisson", "off"):
        visible = search(field, samples, rays, to_unit)
        result = render_visible(field, visible, rays, HardSampleMining(rule))
        assert torch.equal(result.color, torch.zeros(n, 3))
        result.color.sum().backward()


def test_groups_bound_the_samples(rays):
    samples = march(rays)
    for most in (1, 150, 10**9):
        rows, total = 0, 0
        for own, group in groups_of_rays(samples, most):
            assert group.num_rays == own.stop - own.start
            assert own.start == rows
            assert len(group) <= most or group.num_rays == 1
            assert torch.equal(group.t_starts, samples.t_starts[total : total + len(group)])
            assert group.ray_indices.numel() == 0 or group.ray_indices.max() < group.num_rays
            rows, total = own.stop, total + len(group)
        assert rows == samples.num_rays
        assert total == len(samples)


def test_appearance_is_the_images_own_in_training_and_the_mean_in_evaluation():
    encoding = HashEncoding(num_levels=2, log2_hashmap_size=10, max_resolution=32)
    field = HashField(encoding, 8, num_images=3, appearance_dim=5)
    images = torch.tensor([2, 0])
    assert torch.equal(field.appearance_of(images), field.appearance.weight[images])
    field.eval()
    assert torch.allclose(field.appearance_of(images), field.appearance.weight.mean(0).expand(2, -1))
    assert HashField(encoding, 8).appearance_of(images) is None


def off_the_grid_lines(rays: Rays, field: HashField, least: float = 1e-5) -> Rays:
    """The rays without a sample closer to a vertex plane of a level than `least` cells.

    Across such a plane the gradient of the interpolation jumps, and rounding, which differs from one processor to
    another, decides on which side of it a sample lies.
    """
    samples = march(rays)
    positions = to_unit(samples.positions(rays.origins, rays.directions)).double()
    cells = positions[:, None] * torch.from_numpy(field.encoding.levels.scales)[:, None].double() + 0.5
    distances = (cells - cells.round()).abs().amin((1, 2))
    nearest = torch.ones(len(rays.origins), dtype=torch.float64)
    keep = nearest.scatter_reduce(0, samples.ray_indices.long(), distances, "amin") >= least
    return Rays(rays.origins[keep], rays.directions[keep])


def smooth(origins, directions, field, samples, target):
    """A loss of rays, by the definitions alone."""
    composed = plain_render(field, samples, Rays(origins, directions))
    return (composed.color - target).square().sum() + composed.distance.sum()


@pytest.mark.parametrize("keep", [False, True])
def test_rays_get_the_gradient_of_the_definitions(field, rays, keep):
    rays = off_the_grid_lines(rays, field)
    assert len(rays.origins) >= 30
    samples, target = march(rays), torch.rand(len(rays.origins), 3)
    results = []
    for plain in (True, False):
        moving = Rays(rays.origins.clone().requires_grad_(), rays.directions.clone().requires_grad_())
        if plain:
            loss = smooth(*(moving.origins, moving.directions), field, samples, target)
        else:
            visible = search(field, samples, moving, to_unit, early_stop=0.0, keep_features=keep)
            composed = render_visible(field, visible, moving, HardSampleMining("poisson", 1.0, 1.0), to_unit)
            loss = (composed.color - target).square().sum() + composed.distance.sum()
        results.append(torch.autograd.grad(loss, [moving.origins, moving.directions]))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_the_definitions_gradient_is_that_of_rays_that_move():
    torch.manual_seed(0)
    field = HashField(
        HashEncoding(num_levels=2, log2_hashmap_size=8, base_resolution=4, max_resolution=8, backend="reference"), 16
    )
    with torch.no_grad():
        field.encoding.table.uniform_(-1, 1)
    field = field.double()
    origins = 2 * torch.nn.functional.normalize(torch.randn(6, 3), dim=-1)
    directions = torch.nn.functional.normalize(0.3 * torch.randn(6, 3) - origins, dim=-1)
    samples, target = march(Rays(origins, directions), 0.05), torch.rand(6, 3, dtype=torch.float64)
    tensors = [origins.double().requires_grad_(), directions.double().requires_grad_()]
    found = torch.autograd.grad(smooth(*tensors, field, samples, target), tensors)
    step = 1e-7
    for which in range(2):
        for ray, axis in ((0, 0), (1, 1), (2, 2), (5, 0)):
            values = []
            for sign in (1, -1):
                moved = [tensor.detach().clone() for tensor in tensors]
                moved[which][ray, axis] += sign * step
                values.append(float(smooth(*moved, field, samples, target).detach()))
            expected = (values[0] - values[1]) / (2 * step)
            assert float(found[which][ray, axis]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
