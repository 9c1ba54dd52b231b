import pytest
import torch

from ns_support.corrections.moving import BLOCKS, MovingPixels, MovingRule, pixel_blocks, typical_error, window_blocks

RULE = MovingRule(0.4, 5.0, 2.0)


def test_blocks_of_a_window_are_those_of_its_pixels():
    height, width, window = 50, 70, (13, 20, 30, 40)
    blocks = window_blocks(2, window, (height, width))
    rows, columns = torch.meshgrid(torch.arange(13, 43), torch.arange(20, 60), indexing="ij")
    pixels = torch.stack([torch.full_like(rows, 2), rows, columns], -1).reshape(-1, 3)
    sizes = torch.tensor([10, 10, height]), torch.tensor([10, 10, width])
    assert torch.equal(pixel_blocks(pixels, *sizes), blocks.reshape(-1))
    whole = window_blocks(1, (0, 0, height, width), (height, width))
    assert int(whole.min()) == BLOCKS**2
    assert int(whole.max()) == 2 * BLOCKS**2 - 1


def test_a_block_is_the_same_at_every_resolution():
    small, large = window_blocks(0, (0, 0, 32, 64), (32, 64)), window_blocks(0, (0, 0, 64, 128), (64, 128))
    assert torch.equal(large[::2, ::2], small)


def seen(moving, errors, step, progress):
    """Weights of a step that sees two photographs, [2, 64, 64] errors."""
    moving.before_step(progress)
    weights = [moving.weights(window_blocks(photo, (0, 0, 64, 64), (64, 64)), errors[photo]) for photo in range(2)]
    moving.after_step(step)
    return torch.stack(weights)


def test_what_stays_wrong_is_left_out_once_the_rest_is_right():
    moving, draw = MovingPixels(True, 2, RULE), torch.Generator().manual_seed(0)
    wrong = torch.zeros(2, 64, 64, dtype=torch.bool)
    wrong[1, 20:30, 40:50] = True
    for step in range(60):
        noise = 0.04 * torch.rand(2, 64, 64, generator=draw)
        weights = seen(moving, torch.where(wrong, 0.5, noise), step, step / 100)
        if step / 100 < RULE.start:
            assert bool(weights.all())
    assert not weights[wrong].any()
    assert bool(weights[~wrong].all())
    assert float(moving.left_out) == pytest.approx(25 / 2048)


def test_an_object_before_a_plain_background_is_not_what_moved():
    """Nine tenths of the blocks have next to no error; of the object's, one photograph has some that stay wrong."""
    moving, draw = MovingPixels(True, 2, RULE), torch.Generator().manual_seed(0)
    for step in range(60):
        errors = 1e-7 * torch.rand(2, 64, 64, generator=draw)
        errors[:, 20:40, 20:40] = 0.01 + 0.02 * torch.rand(2, 20, 20, generator=draw)
        errors[1, 30:34, 30:34] = 0.5
        weights = seen(moving, errors, step, step / 100)
    assert not weights[1, 30:34, 30:34].any()
    weights[1, 30:34, 30:34] = 1
    assert bool(weights.all())


def test_typical_error():
    assert float(typical_error(torch.tensor([-1.0, -1.0]))) == float("inf")
    assert float(typical_error(torch.zeros(5))) == 0
    assert float(typical_error(torch.tensor([-1.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.3, 0.4]))) == pytest.approx(0.3)


def test_a_block_that_becomes_right_counts_again():
    moving, errors = MovingPixels(True, 2, RULE), torch.full((2, 64, 64), 0.02)
    errors[0, :8, :8] = 0.5
    for step in range(40):
        weights = seen(moving, errors, step, 0.5)
    assert not weights[0, :8, :8].any()
    errors[0, :8, :8] = 0.02
    for step in range(40, 80):
        weights = seen(moving, errors, step, 0.5)
    assert bool(weights.all())


@pytest.mark.parametrize("group", [2, 4, 5])
def test_blocks_are_judged_where_gradients_of_several_steps_are_averaged(group):
    """The corrections are then told of the last step of each group only."""
    moving, errors = MovingPixels(True, 2, RULE), torch.full((2, 64, 64), 0.02)
    errors[0, :8, :8] = 0.5
    for step in range(group - 1, 60, group):
        weights = seen(moving, errors, step, 0.5)
    assert not weights[0, :8, :8].any()
    assert float(moving.left_out) == pytest.approx(16 / 2048)


def test_a_large_error_that_stands_alone_is_learnt():
    """Fine detail: single blocks with ten times the error of the others, in one photograph."""
    moving, errors = MovingPixels(True, 2, RULE), torch.full((2, 64, 64), 0.02)
    errors[0, 1::12, 1::12] = 0.8  # a quarter of each block
    for step in range(40):
        weights = seen(moving, errors, step, 0.5)
    assert bool(weights.all())


def test_a_block_that_was_not_seen_while_errors_fell_counts():
    moving = MovingPixels(True, 2, RULE)
    for step in range(400):
        moving.before_step(step / 400)
        whole = 0.5 * 0.99**step * torch.ones(64, 64)
        moving.weights(window_blocks(1, (0, 0, 64, 64), (64, 64)), whole)
        if step < 10 or step == 399:
            weights = moving.weights(window_blocks(0, (0, 0, 64, 64), (64, 64)), whole)
        moving.after_step(step)
    assert bool(weights.all())
    assert not moving.moved.any()


def test_what_a_mask_hides_is_not_judged():
    """Nor are blocks beside it, whose own errors are large enough to be left out with such neighbours."""
    moving = MovingPixels(True, 2, RULE)
    errors, mask = torch.full((64, 64), 0.02), torch.ones(64, 64)
    errors[:, 30:], mask[:, 30:] = 0.9, 0.0
    errors[:, 28:30] = 0.05
    for step in range(40):
        moving.before_step(0.5)
        for photo in range(2):
            weights = moving.weights(window_blocks(photo, (0, 0, 64, 64), (64, 64)), errors, mask)
        moving.after_step(step)
    assert bool(weights.all())
    assert float(moving.totals[0] / moving.totals[1]) == pytest.approx((0.02 * 28 + 0.05 * 2) / 30)
    assert bool((moving.errors.view(2, BLOCKS, BLOCKS)[:, :, 15:] < 0).all())


def test_running_errors_and_what_is_left_out_are_part_of_a_checkpoint():
    moving, errors = MovingPixels(True, 2, RULE), torch.full((2, 64, 64), 0.1)
    errors[1, :20, :20] = 0.9
    for step in range(20):
        seen(moving, errors, step, 0.5)
    again = MovingPixels(True, 2, RULE)
    again.load_state_dict(moving.state_dict())
    again.before_step(0.5)
    assert torch.equal(seen(again, errors, 20, 0.5), seen(moving, errors, 20, 0.5))
    assert not again.moved.all()
    assert bool(again.moved.any())
    assert float(again.errors.max()) > 4


def test_of_a_checkpoint_that_kept_errors_as_they_were_what_moved_is_found_anew():
    """Also if it is of more photographs than there are: the model then makes room for their errors first."""
    moving = MovingPixels(True, 2, RULE)
    moving.moved.fill_(True)
    state = {"errors": torch.full((3 * BLOCKS**2,), 0.1), "limit": torch.tensor(0.2)}
    moving.errors.data = torch.zeros_like(state["errors"])
    moving.load_state_dict(state)
    assert bool((moving.errors < 0).all())
    assert len(moving.moved) == len(state["errors"])
    assert not moving.moved.any()


@pytest.mark.parametrize(("is_on", "photos"), [(False, 5), (True, 0), (True, 1)])
def test_nothing_is_left_out_unasked_or_where_nothing_contradicts(is_on, photos):
    moving = MovingPixels(is_on, photos, RULE)
    assert not moving.is_on
    assert not moving.state_dict()
    moving.before_step(1.0)
    moving.after_step(0)
    assert moving.left_out == 0
