"""Re-ordered Gaussians are the same Gaussians, and everything that belongs to one follows it."""

import copy

import torch

from raygauss_ns.casting.morton import morton_codes
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.density.control import DensityControl, DensitySchedule
from raygauss_ns.gaussians.initialization import random_points
from raygauss_ns.gaussians.maintenance import reorder

SCHEDULE = DensitySchedule(first=10, last=100, every=5, threshold=1.0, max_gaussians=1000)


def trained(count=50):
    """A cloud after two steps of Adam, whose moments and statistic differ from Gaussian to Gaussian."""
    torch.manual_seed(0)
    cloud = GaussianCloud(random_points(count, torch.tensor([[-1.0] * 3, [1.0] * 3])), 1.0, 4.0)
    optimizers = {name: torch.optim.Adam([p], lr=1e-3) for name, p in cloud.params.items()}
    for _ in range(2):
        sum((p * torch.randn_like(p)).sum() for p in cloud.params.values()).backward()
        for optimizer in optimizers.values():
            optimizer.step()
    control = DensityControl(count, SCHEDULE, 0.1)
    control.gradient_sum, control.times_seen = torch.rand(count), torch.rand(count)
    control.log_scale_floor = torch.rand(count)
    return cloud, optimizers, control


def rows_of(cloud, optimizers, control):
    """All that belongs to a Gaussian, by what it is."""
    rows = {name: value.clone() for name, value in control.state_dict().items()}
    for name, parameter in cloud.params.items():
        rows |= {name: parameter.detach().clone(), f"{name}.grad": parameter.grad.clone()}
        rows |= {f"{name}.{k}": v.clone() for k, v in optimizers[name].state[parameter].items() if k != "step"}
    return rows


def test_everything_follows():
    parts = trained()
    before, tensors = rows_of(*parts), list(parts[0].params.values())
    order = reorder(parts[0].params, *parts[1:])
    after = rows_of(*parts)
    assert len(after) == 3 + 4 * 9
    assert all(torch.equal(after[name], before[name][order]) for name in before)
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() != list(range(50))
    assert all(a is b for a, b in zip(tensors, parts[0].params.values(), strict=True))
    assert all(o.state[p]["step"] == 2 for o, p in zip(parts[1].values(), tensors, strict=True))
    assert bool((morton_codes(after["means"]).diff() >= 0).all())


def test_a_second_time_changes_nothing():
    parts = trained()
    reorder(parts[0].params, *parts[1:])
    before = rows_of(*parts)
    assert reorder(parts[0].params, *parts[1:]).tolist() == list(range(50))
    assert all(torch.equal(value, before[name]) for name, value in rows_of(*parts).items())


def test_the_next_optimiser_step_is_the_same_for_each_gaussian():
    moved = trained()
    stayed = copy.deepcopy(moved)  # the optimisers' parameters are copied with the cloud's
    order = reorder(moved[0].params, *moved[1:])
    for parts, places in ((moved, order), (stayed, slice(None))):
        for name, parameter in parts[0].params.items():
            wanted = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.grad = wanted[places].clone()
            parts[1][name].step()
    for name, parameter in moved[0].params.items():
        assert torch.equal(parameter, stayed[0].params[name][order]), name


def test_without_optimisers_gradients_or_bounds():
    cloud, _, control = trained()
    for parameter in cloud.params.values():
        parameter.grad = None
    control.log_scale_floor = torch.zeros(0)
    reorder(cloud.params, {}, control)
    assert len(control.log_scale_floor) == 0
    single = trained(1)
    assert reorder(single[0].params, *single[1:]).tolist() == [0]
