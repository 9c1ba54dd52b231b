import pytest
import torch

from raygauss_ns.color import view_colors
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.initialization import StartPoints, neighbor_distances, random_points


def test_neighbor_distances_on_a_lattice():
    grid = torch.cartesian_prod(*(torch.arange(4.0),) * 3) * 0.5
    torch.testing.assert_close(neighbor_distances(grid, 1.0), torch.full((64,), 0.5))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_neighbor_distances_of_few_points(count):
    distances = neighbor_distances(torch.arange(count * 3.0).view(count, 3), unit=2.0)
    assert distances.shape == (count,)
    assert bool((distances > 0).all())
    if count == 1:
        assert distances.item() == 2.0


def test_coinciding_points_get_a_positive_scale():
    assert bool((neighbor_distances(torch.zeros(10, 3), unit=1.0) > 0).all())


def test_physical_values():
    start = StartPoints(torch.rand(7, 3), torch.rand(7, 3))
    cloud = GaussianCloud(start, unit=0.5, density=3.0)
    gaussians = cloud.gaussians()
    torch.testing.assert_close(gaussians.means.data, start.positions)
    torch.testing.assert_close(gaussians.densities.data, torch.full((7,), 6.0))  # 3 per unit, a unit being 0.5 long
    torch.testing.assert_close(gaussians.scales.data, neighbor_distances(start.positions, 0.5)[:, None].expand(7, 3))


def test_random_points_fill_the_box():
    torch.manual_seed(0)
    box = torch.tensor([[-1.0, 2.0, -3.0], [0.0, 4.0, 5.0]])
    positions = random_points(5000, box).positions
    torch.testing.assert_close(positions.amin(0), box[0], atol=0.02, rtol=0)
    torch.testing.assert_close(positions.amax(0), box[1], atol=0.02, rtol=0)


def test_loading_another_number_resizes_in_place_and_keeps_the_optimisers():
    torch.manual_seed(0)
    big = GaussianCloud(random_points(9, torch.tensor([[-1.0] * 3, [1.0] * 3])), 1.0, 1.0)
    optimizer = torch.optim.Adam(big.params.values(), lr=0.1)
    sum(p.square().sum() for p in big.params.values()).backward()
    optimizer.step()

    small = GaussianCloud(random_points(4, torch.tensor([[-1.0] * 3, [1.0] * 3])), 1.0, 1.0)
    before = {name: id(p) for name, p in small.params.items()}
    resumed = torch.optim.Adam(small.params.values(), lr=0.1)
    small.load_state_dict(big.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    assert {name: id(p) for name, p in small.params.items()} == before
    for name, parameter in big.params.items():
        torch.testing.assert_close(small.params[name], parameter)
        torch.testing.assert_close(resumed.state[small.params[name]]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_a_recolored_cloud_shows_mapped_colours_from_everywhere():
    torch.manual_seed(0)
    cloud = GaussianCloud(StartPoints(torch.rand(20, 3), torch.rand(20, 3)), 1.0, 1.0)
    for name in ("sh_rest", "sg_amplitudes", "sg_sharpness"):
        torch.nn.init.normal_(cloud.params[name], std=0.3)
    matrix, shift = torch.eye(3) + 0.2 * torch.randn(3, 3), 0.1 * torch.randn(3)
    for center in torch.randn(4, 3):
        before, after = (
            view_colors(each.color_basis(), each.params["means"], center)
            for each in (cloud, cloud.recolored(matrix, shift))
        )
        torch.testing.assert_close(after, before @ matrix.T + shift, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["means", "densities", "sh_rest"])
def test_a_state_whose_parameters_differ_in_number_is_refused(name):
    cloud = GaussianCloud(random_points(9, torch.tensor([[-1.0] * 3, [1.0] * 3])), 1.0, 1.0)
    state = cloud.state_dict()
    state[f"params.{name}"] = state[f"params.{name}"][:-3].clone()
    with pytest.raises(RuntimeError, match="size mismatch for params"):
        cloud.load_state_dict(state)
