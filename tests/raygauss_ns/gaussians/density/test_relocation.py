"""Relocation: what shows nothing is removed, what the images miss is divided, and the field stays what it was."""

import torch
from torch.nn.functional import normalize

from raygauss_ns.casting.types import whitening_matrices
from raygauss_ns.gaussians.density.control import DensityControl, DensitySchedule
from raygauss_ns.gaussians.density.relocation import SHIFT, divide, weighted_choice
from raygauss_ns.gaussians.optics import optical_depths

from .test_control import assert_consistent, cloud_with_optimizers, record

SCHEDULE = DensitySchedule(first=0, last=100, every=10, threshold=9e9, max_gaussians=16, grow_until=10)


def moments_of(params):
    """Mass, mean and covariance of the whole field, in float64."""
    means, scales = params["means"].double(), params["scales"].double().exp()
    whitenings = whitening_matrices(scales, params["quats"].double())
    covariances = torch.linalg.inv(whitenings.mT @ whitenings)
    masses = params["densities"].double() * scales.prod(-1)
    mass = masses.sum()
    mean = (masses[:, None] * means).sum(0) / mass
    away = means - mean
    spread = covariances + away[:, :, None] * away[:, None, :]
    return mass, mean, (masses[:, None, None] * spread).sum(0) / mass


def uneven(count):
    cloud, optimizers = cloud_with_optimizers(count)
    cloud.params["scales"].data = torch.linspace(-4.0, -1.0, 3 * count).view(count, 3)[:, [1, 2, 0]].contiguous()
    cloud.params["quats"].data = torch.randn(count, 4, generator=torch.Generator().manual_seed(5))
    return cloud, optimizers


def test_halves_keep_mass_mean_and_covariance():
    cloud, optimizers = uneven(6)
    before = [value.detach() for value in moments_of(cloud.params)]
    means = cloud.params["means"].detach().clone()
    chosen = torch.tensor([True, False, True, True, False, False])
    divide(cloud.params, optimizers, chosen)
    assert_consistent(cloud, optimizers, 9)
    for value, expected in zip(moments_of(cloud.params), before, strict=True):
        torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(cloud.params["means"].data[[1, 4, 5]], means[[1, 4, 5]])
    apart = cloud.params["means"].data[[0, 2, 3]] - cloud.params["means"].data[6:]
    axes = normalize(apart, dim=-1)
    longest = torch.linalg.vector_norm(apart, dim=-1)
    # The longest axis is the second one of each.
    torch.testing.assert_close(longest, 2 * SHIFT * torch.linspace(-4.0, -1.0, 18).view(6, 3)[[0, 2, 3], 2].exp())
    rotations = torch.linalg.inv(whitening_matrices(torch.ones(6, 3), cloud.params["quats"].detach()[:6]))
    torch.testing.assert_close((axes * rotations[[0, 2, 3], :, 1]).sum(-1).abs(), torch.ones(3))


def test_halves_start_without_momentum_and_others_keep_theirs():
    cloud, optimizers = uneven(4)
    moments = optimizers["scales"].state[cloud.params["scales"]]["exp_avg"].clone()
    divide(cloud.params, optimizers, torch.tensor([False, True, False, False]))
    kept = optimizers["scales"].state[cloud.params["scales"]]["exp_avg"]
    torch.testing.assert_close(kept[[0, 2, 3]], moments[[0, 2, 3]])
    assert not kept[[1, 4]].any()


def test_draws_follow_the_weights_and_the_seed_alone():
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 4.0, 1e-9])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn = torch.stack([weighted_choice(weights, 1, seed) for seed in range(4000)])
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(drawn.double().mean(0), (weights / 7).double(), rtol=0, atol=0.03)
    assert weighted_choice(weights, 3, 0).nonzero()[:, 0].tolist() == [1, 2, 4]
    assert int(weighted_choice(torch.zeros(5), 5, 0).sum()) == 5
    assert torch.equal(weighted_choice(weights, 2, 9), weighted_choice(weights, 2, 9))


def test_the_faint_make_place_for_halves_of_those_with_a_high_statistic():
    cloud, optimizers = cloud_with_optimizers(8)
    unit = 0.5
    # Opacity just below and just above 0.005.
    for row, depth in ((2, 0.00495), (5, 0.00507)):
        density = depth * unit / optical_depths(torch.ones(1), cloud.params["scales"].detach()[row : row + 1])
        cloud.params["densities"].data[row] = float(density)
    means = cloud.params["means"].detach().clone()
    control = DensityControl(8, SCHEDULE._replace(max_gaussians=9), 0.1)
    control.log_scale_floor = torch.zeros(8)
    record(control, [0.0, 0.0, 9.0, 5.0, 0.0, 0.0, 5.0, 0.0])
    assert control.relocate(cloud.params, optimizers, unit, step=50, seed=0) == 1
    assert_consistent(cloud, optimizers, 9)
    # Row 2 is gone; rows 3 and 6, then 2 and 5 of those left, are halved, though the statistic of row 2 is higher.
    moved = (cloud.params["means"].data[:7] != means[[0, 1, 3, 4, 5, 6, 7]]).any(-1)
    assert moved.nonzero()[:, 0].tolist() == [2, 5]
    assert len(control.gradient_sum) == 9
    assert not control.gradient_sum.any()
    assert len(control.log_scale_floor) == 0


def test_rounds_reach_the_number_and_stay_there():
    cloud, optimizers = cloud_with_optimizers(4)
    control = DensityControl(4, SCHEDULE, 0.1)
    sizes = []
    for step in (0, 10, 20):
        record(control, [1.0] * len(cloud))
        control.relocate(cloud.params, optimizers, 1.0, step, seed=step)
        sizes.append(len(cloud))
    assert sizes == [8, 16, 16]


def test_the_set_does_not_grow_beyond_the_limit_of_the_present():
    cloud, optimizers = cloud_with_optimizers(4)
    control = DensityControl(4, SCHEDULE, 0.1)
    for limit, expected in ((6.5, 6), (3.0, 6), (float("inf"), 12)):
        record(control, [1.0] * len(cloud))
        control.relocate(cloud.params, optimizers, 1.0, 20, 0, limit)
        assert_consistent(cloud, optimizers, expected)


def test_no_round_more_than_doubles_and_too_many_stay():
    cloud, optimizers = cloud_with_optimizers(4)
    for most, expected in ((100, 8), (6, 8)):
        control = DensityControl(len(cloud), SCHEDULE._replace(max_gaussians=most), 0.1)
        record(control, [1.0] * len(cloud))
        control.relocate(cloud.params, optimizers, 1.0, step=90, seed=0)
        assert_consistent(cloud, optimizers, expected)


def test_if_all_are_faint_they_are_left_to_training():
    cloud, optimizers = cloud_with_optimizers(4)
    cloud.params["densities"].data.fill_(1e-6)
    control = DensityControl(4, SCHEDULE, 0.1)
    record(control, [1.0] * 4)
    assert control.relocate(cloud.params, optimizers, 1.0, 0, 0) == 0
    assert_consistent(cloud, optimizers, 4)
