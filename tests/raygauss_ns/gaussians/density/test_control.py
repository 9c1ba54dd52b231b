import pytest
import torch

from ns_support.concurrency.processes import Processes
from ns_support.lenses.lens import LensType, make_lens
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.density.control import DensityControl, DensitySchedule
from raygauss_ns.gaussians.initialization import random_points
from raygauss_ns.gaussians.projection import View

LENS = make_lens(LensType.PERSPECTIVE, (50.0, 50.0), (50.0, 50.0), (100, 100))
SCHEDULE = DensitySchedule(first=10, last=100, every=5, threshold=1.0, max_gaussians=1000)


def cloud_with_optimizers(count=8):
    torch.manual_seed(0)
    cloud = GaussianCloud(random_points(count, torch.tensor([[-1.0] * 3, [1.0] * 3])), 1.0, 4.0)
    optimizers = {name: torch.optim.Adam([p], lr=1e-3) for name, p in cloud.params.items()}
    sum((p * torch.randn_like(p)).sum() for p in cloud.params.values()).backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return cloud, optimizers


def gradient(values):
    """A gradient of the means with these norms."""
    return torch.tensor(values)[:, None] * torch.tensor([[0.6, 0.0, 0.8]])


def record(control, norms, means=None, unit=1.0, view=None, images=1):
    means = torch.zeros(len(norms), 3) if means is None else means
    control.observe(gradient(norms), means, unit, view, images)
    control.add_observed(Processes())


def assert_consistent(cloud, optimizers, count):
    for name, parameter in cloud.params.items():
        assert len(parameter) == count
        assert optimizers[name].param_groups[0]["params"][0] is parameter
        assert optimizers[name].state[parameter]["exp_avg"].shape == parameter.shape


def test_schedule():
    control = DensityControl(1, SCHEDULE, 0.1)
    assert [step for step in range(120) if control.is_due(step)] == list(range(10, 101, 5))


def test_statistic_is_the_mean_over_the_steps_that_saw_it():
    control = DensityControl(2, SCHEDULE, 0.1)
    record(control, [1.0, 0.0], unit=2.0)
    record(control, [3.0, 5.0], unit=2.0)
    torch.testing.assert_close(control.statistic, torch.tensor([4.0, 10.0]))


def test_a_step_of_a_group_counts_in_full():
    control = DensityControl(1, SCHEDULE, 0.1)
    record(control, [0.25], images=4)
    torch.testing.assert_close(control.statistic, torch.tensor([1.0]))


def test_a_window_counts_for_those_whose_centre_it_may_hold():
    """Gaussians in the window, elsewhere in the image, beyond the image's edge, and behind the camera."""
    camera = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [-2.0]])], 1)
    view = View(camera, LENS, (0, 0, 50, 100))  # the upper half
    means = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 9.0, 0.0], [0.0, -1.0, 5.0]])
    assert view.misses(means).tolist() == [False, True, False, False]
    control = DensityControl(4, SCHEDULE, 0.1)
    record(control, [1.0] * 4, means, view=view)
    assert control.gradient_sum.tolist() == [0.5] * 4  # half of the image's pixels
    assert control.times_seen.tolist() == [1.0, 0.0, 1.0, 1.0]


def test_distance_weighting():
    camera = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [-2.0]])], 1)
    view = View(camera, LENS, (0, 0, 100, 100))
    means = torch.tensor([[0.0, 0.0, 1.5], [0.0, 0.0, -4.0], [6.0, 0.0, -6.0]])  # 0.5, 6 and 10 away
    control = DensityControl(3, SCHEDULE._replace(distance_weighted=True), 0.1)
    record(control, [1.0] * 3, means, unit=2.0, view=view)
    torch.testing.assert_close(control.statistic, torch.tensor([2.0, 2.0 * 3, 2.0 * 5]))


def test_small_ones_are_cloned_and_large_ones_split():
    cloud, optimizers = cloud_with_optimizers()
    cloud.params["scales"].data[0] = -9.0
    cloud.params["scales"].data[1] = torch.tensor([-9.0, -1.0, -9.0])
    old = {name: p.detach().clone() for name, p in cloud.params.items()}
    moments = optimizers["means"].state[cloud.params["means"]]["exp_avg"].clone()
    control = DensityControl(8, SCHEDULE, 0.1)
    record(control, [2.0, 2.0] + [0.5] * 6)
    assert control.densify(cloud.params, optimizers, extent=1.0, seed=0) == 2
    assert_consistent(cloud, optimizers, 10)
    p = cloud.params
    # The order: what was left alone (0 and 2..7), the clone, the two halves.
    torch.testing.assert_close(p["means"][0], old["means"][0])
    torch.testing.assert_close(p["means"][1:7], old["means"][2:])
    torch.testing.assert_close(p["means"][7], old["means"][0])
    torch.testing.assert_close(p["scales"][8:], (old["scales"][1] - torch.log(torch.tensor(1.6))).expand(2, 3))
    # The halves lie along the long axis, within a few standard deviations.
    away = (p["means"][8:] - old["means"][1]).abs()
    assert bool((away[:, [0, 2]] < 1e-2).all())
    assert bool((away[:, 1] > 1e-4).all())
    assert bool((away[:, 1] < 2.0).all())
    torch.testing.assert_close(p["densities"][[0, 7, 8, 9]], old["densities"][[0, 0, 1, 1]] / 2)
    torch.testing.assert_close(p["densities"][1:7], old["densities"][2:])
    kept = optimizers["means"].state[p["means"]]["exp_avg"]
    torch.testing.assert_close(kept[:7], moments[[0, 2, 3, 4, 5, 6, 7]])
    assert not kept[7:].any()
    assert len(control.gradient_sum) == 10
    assert not control.gradient_sum.any()


def test_the_cap_keeps_the_largest_statistics():
    cloud, optimizers = cloud_with_optimizers()
    control = DensityControl(8, SCHEDULE._replace(max_gaussians=10), 0.1)
    record(control, [2.0, 9.0, 3.0, 8.0, 2.0, 2.0, 2.0, 2.0])
    densities = cloud.params["densities"].detach().clone()
    assert control.densify(cloud.params, optimizers, extent=1e6, seed=0) == 2
    halved = cloud.params["densities"][:8] < 0.75 * densities
    assert halved.nonzero().flatten().tolist() == [1, 3]


def test_a_full_set_does_not_grow():
    cloud, optimizers = cloud_with_optimizers()
    control = DensityControl(8, SCHEDULE._replace(max_gaussians=3), 0.1)
    record(control, [2.0] * 8)
    assert control.densify(cloud.params, optimizers, extent=1.0, seed=0) == 0
    assert_consistent(cloud, optimizers, 8)


def test_prune_removes_what_has_faded_and_keeps_the_statistic():
    cloud, optimizers = cloud_with_optimizers()
    cloud.params["densities"].data[[1, 4]] = torch.tensor([0.1, float("nan")])
    means = cloud.params["means"].detach().clone()
    control = DensityControl(8, SCHEDULE, 0.1)
    record(control, [float(i) for i in range(8)])
    assert control.prune(cloud.params, optimizers) == 6
    assert_consistent(cloud, optimizers, 6)
    torch.testing.assert_close(cloud.params["means"].data, means[[0, 2, 3, 5, 6, 7]])
    torch.testing.assert_close(control.gradient_sum, torch.tensor([0.0, 2.0, 3.0, 5.0, 6.0, 7.0]))


def test_prune_says_when_nothing_is_left():
    cloud, optimizers = cloud_with_optimizers()
    cloud.params["densities"].data.zero_()
    assert DensityControl(8, SCHEDULE, 0.1).prune(cloud.params, optimizers) == 0
    assert_consistent(cloud, optimizers, 8)


def test_where_halves_land_is_the_seeds_affair_alone():
    results = []
    for seed, disturbed in ((0, False), (0, True), (1, False)):
        cloud, optimizers = cloud_with_optimizers()
        control = DensityControl(8, SCHEDULE, 0.1)
        record(control, [2.0] * 8)
        torch.manual_seed(int(disturbed))
        before = torch.get_rng_state()
        control.densify(cloud.params, optimizers, extent=1e-3, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(cloud.params["means"].detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_state_of_another_size_loads():
    control = DensityControl(3, SCHEDULE, 0.1)
    record(control, [1.0, 2.0, 3.0])
    other = DensityControl(7, SCHEDULE, 0.1)
    other.load_state_dict(control.state_dict())
    torch.testing.assert_close(other.gradient_sum, control.gradient_sum)


@pytest.mark.parametrize("count", [1, 8])
def test_all_multiply(count):
    cloud, optimizers = cloud_with_optimizers(count)
    control = DensityControl(count, SCHEDULE, 0.1)
    record(control, [2.0] * count)
    assert control.densify(cloud.params, optimizers, extent=1.0, seed=0) == count
    assert_consistent(cloud, optimizers, 2 * count)
