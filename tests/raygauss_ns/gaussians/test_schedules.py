import pytest
import torch

from raygauss_ns.gaussians.schedules import (
    Draw,
    active_colors,
    downscales_at,
    step_generator,
    step_seed,
    steps_per_update,
    stretched,
)


def test_schedules_stretch_in_proportion():
    assert [stretched(15_000, total) for total in (30_000, 3_000, 100_000, 0)] == [15_000, 1_500, 50_000, 0]


def test_colours_unlock_one_by_one():
    at = [0, 999, 1000, 2000, 2999, 3000, 30_000]
    seen = [active_colors(step, 1000, 2) for step in at]
    assert seen == [(0, False), (0, False), (1, False), (2, False), (2, False), (2, True), (2, True)]
    assert active_colors(5000, 1000, 1) == (1, True)
    assert active_colors(0, 0, 2) == (2, True)


def test_images_grow_in_equal_parts_and_are_whole_in_the_end():
    sizes = [downscales_at(step, 3, 90) for step in range(120)]
    assert sizes == [3] * 30 + [2] * 30 + [1] * 30 + [0] * 30
    assert [downscales_at(step, 2, 3) for step in range(5)] == [2, 2, 1, 0, 0]  # no step is of a size below 0
    assert [downscales_at(step, 0, 90) for step in (0, 50)] == [0, 0]
    assert downscales_at(0, 2, 0) == 0


@pytest.mark.parametrize(("start", "first"), [(0, 0), (20, 20), (21, 40), (39, 40)])
def test_groups_of_images_are_whole(start, first):
    """The trainer zeroes gradients at multiples of the number of images: no group may begin elsewhere."""
    counts = [steps_per_update(step, start, 20) for step in range(100)]
    assert counts == [1] * first + [20] * (100 - first)
    assert first % 20 == 0


def test_every_draw_of_every_step_has_its_own_numbers():
    seeds = {step_seed(seed, step, draw) for seed in (0, 1, 42) for step in range(1000) for draw in Draw}
    assert len(seeds) == 3 * 1000 * len(Draw)
    assert min(seeds) >= 0
    a, b = (torch.rand(3, generator=step_generator(7, 5, Draw.WINDOW)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.rand(3, generator=step_generator(7, 5, Draw.BACKGROUND)))


def test_any_seed_of_torch_serves():
    step_generator(torch.initial_seed() | (1 << 63), 30_000, Draw.SPLIT)
