"""Windows drawn where images are wrong: which, with what weight, what is remembered and what is saved."""

import pytest
import torch

from ns_support.concurrency.processes import Processes
from ns_support.sampling.running import RATE, UNKNOWN
from ns_support.sampling.windows import BLOCKS, WindowMemory

SIZES = [(90, 121), (64, 48)]
"""The first can't be halved without a rest."""
ALONE = Processes()


def learnt(**settings):
    """A memory of errors and masks that differ from block to block, in part unknown."""
    memory, found = WindowMemory(True, SIZES, **settings), torch.Generator().manual_seed(0)
    memory.memory.copy_(torch.rand(memory.memory.shape, generator=found) ** 3)
    memory.memory[:, 1, :5] = UNKNOWN
    return memory


def drawn(memory, number, photo=0, factor=1, extent=(24, 24)):
    generator = torch.Generator().manual_seed(1)
    found = [memory.draw(photo, factor, extent, generator) for _ in range(number)]
    return torch.tensor([window for window, _ in found]), torch.tensor([weight for _, weight in found])


def graded():
    """A memory of errors that grow from the first corner of each image to the last."""
    memory, grade = WindowMemory(True, SIZES), torch.linspace(0, 1, BLOCKS)
    memory.memory[0], memory.memory[1] = 0.01 + (grade[:, None] * grade) ** 3, 1
    return memory


@pytest.mark.parametrize("photo", [0, 1])
@pytest.mark.parametrize("factor", [1, 2])
def test_the_weighted_mean_of_drawn_windows_is_that_of_all_windows(photo, factor):
    """Of a quantity that is large where errors are: drawn without weights it comes out too large."""
    memory, extent, size = graded(), (12, 11), [side // factor for side in SIZES[photo]]
    starts = [side - part + 1 for side, part in zip(size, extent, strict=True)]
    down, across = (torch.linspace(0, 1, number, dtype=torch.float64) for number in starts)
    quantity = (down[:, None] * across) ** 2
    windows, weights = drawn(memory, 1500, photo, factor, extent)
    values = quantity[windows[:, 0], windows[:, 1]]
    weighted, wanted = values * weights, float(quantity.mean())
    assert abs(float(weighted.mean()) - wanted) < 4 * float(weighted.std()) / len(values) ** 0.5 < 0.3 * wanted
    assert float(values.mean()) > 1.5 * wanted
    assert [windows[:, i].amin() for i in (0, 1)] == [0, 0]
    assert [windows[:, i].amax() for i in (0, 1)] == [number - 1 for number in starts]


def test_every_window_can_be_drawn_and_probabilities_sum_to_one():
    """In an image so small that all its windows turn up: sum of q = sum of 1 / (W weight), and q is how often."""
    memory = WindowMemory(True, [(14, 15)])
    memory.memory.copy_(torch.rand(memory.memory.shape, generator=torch.Generator().manual_seed(0)) ** 9)
    windows, weights = drawn(memory, 4000, extent=(11, 11))
    weight_of = torch.zeros(4, 5).index_put((windows[:, 0], windows[:, 1]), weights)
    assert bool((weight_of > 0).all())
    chance = 1 / (20 * weight_of.double())
    assert float(chance.sum()) == pytest.approx(1)
    times = torch.zeros(4, 5).index_put((windows[:, 0], windows[:, 1]), torch.ones(4000), accumulate=True)
    deviation = (4000 * chance * (1 - chance)).sqrt()
    assert bool(((times - 4000 * chance).abs() < 4 * deviation).all())


def test_weights_have_a_bound():
    memory = WindowMemory(True, [(100, 100)], uniform_share=0.25)
    memory.memory[0], memory.memory[1] = 0, 1
    memory.memory[0, 0, 0, 0] = 1e6
    _, weights = drawn(memory, 500)
    assert float(weights.max()) == pytest.approx(4)


def test_windows_are_drawn_by_the_root_of_their_loss():
    """The upper half has four times the error: windows within it are twice as likely."""
    memory = WindowMemory(True, [(160, 160)], uniform_share=1e-9)
    memory.memory[1], memory.memory[0, 0, :8], memory.memory[0, 0, 8:] = 1, 4, 1
    windows, weights = drawn(memory, 300)
    above, below = weights[windows[:, 0] < 50], weights[windows[:, 0] > 90]
    assert float(below.mean() / above.mean()) == pytest.approx(2, rel=1e-6)


def test_the_loss_of_a_window_is_a_mean_over_what_counts():
    """Where a mask hides nine tenths, a tenth of the error per pixel is the same loss."""
    memory = WindowMemory(True, [(160, 160)])
    memory.memory[:, 0, :8], memory.memory[:, 0, 8:] = 1, 0.1
    _, weights = drawn(memory, 100)
    torch.testing.assert_close(weights, torch.ones(100))
    memory.memory.zero_()  # everything is hidden
    _, weights = drawn(memory, 100)
    assert torch.equal(weights, torch.ones(100))


def test_nothing_known_is_uniform():
    memory = WindowMemory(True, SIZES)
    windows, weights = drawn(memory, 3000, extent=(24, 24))
    assert torch.equal(weights, torch.ones(3000))
    assert float(windows[:, 0].double().mean()) == pytest.approx(33, abs=1.5)
    assert float(windows[:, 1].double().mean()) == pytest.approx(48.5, abs=2)


def test_a_whole_image_has_one_window():
    (window, weight) = learnt().draw(1, 2, (32, 24), torch.Generator())
    assert (window, weight) == ((0, 0, 32, 24), 1.0)


def learn(memory, *notes, processes=ALONE):
    for place, (photo, window, factor, errors, mask) in enumerate(notes):
        memory.note(photo, window, factor, errors, mask, (place, len(notes)))
    memory.after_step(processes)


def block_of(row, column, size, factor):
    return row * factor * BLOCKS // size[0], column * factor * BLOCKS // size[1]


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_block_is_the_same_place_at_every_resolution(factor):
    """A pixel's error is remembered where the image has that pixel, whatever rows a reduction cuts off."""
    memory, (height, width) = WindowMemory(True, SIZES), SIZES[0]
    errors = torch.rand(height // factor, width // factor)
    learn(memory, (0, (0, 0, *errors.shape), factor, errors, None))
    memory.after_step(ALONE)
    expected = torch.zeros(2, BLOCKS, BLOCKS)
    for row in range(errors.shape[0]):
        for column in range(errors.shape[1]):
            at = block_of(row, column, SIZES[0], factor)
            expected[0][at] += errors[row, column]
            expected[1][at] += 1
    known = memory.memory[0, 0] >= 0
    assert torch.equal(known, expected[1] > 0)
    torch.testing.assert_close(memory.memory[0, 0][known], (expected[0] / expected[1])[known])
    # And the loss that is expected of a window is looked up at the same place.
    memory.memory[0], memory.memory[1] = 0, 1
    memory.memory[0, 0, 12, 10] = 1
    row, column = (round(side * (at + 0.5) / BLOCKS / factor) for side, at in zip(SIZES[0], (12, 10), strict=True))
    windows, weights = drawn(memory, 400, factor=factor, extent=(11, 11))
    top, left = windows[:, 0], windows[:, 1]
    shows = (top <= row) & (row < top + 11) & (left <= column) & (column < left + 11)
    assert float(weights[shows].mean()) < 0.6 * float(weights[~shows].mean())


def test_what_is_found_moves_the_memory_a_step_later():
    memory, window = WindowMemory(True, [(32, 32)]), (0, 0, 2, 2)
    half = torch.tensor([[[1.0], [0.0]], [[0.5], [0.5]]])
    learn(memory, (0, window, 1, torch.full((2, 2), 4.0), None))
    assert bool((memory.memory < 0).all())
    learn(memory, (0, window, 1, torch.full((2, 2), 8.0), half))
    assert memory.memory[:, 0, 0, 0].tolist() == [4, 1]
    assert bool((memory.memory[:, 0, 1:] < 0).all())
    memory.after_step(ALONE)
    assert memory.memory[:, 0, 0, 0].tolist() == pytest.approx([4 + RATE * (4 - 4), 1 + RATE * (0.5 - 1)])
    memory.after_step(ALONE)  # of a step that has noted nothing
    assert memory.memory[0, 0, 0, 0] == pytest.approx(4)


def test_what_is_not_finite_is_not_remembered():
    memory = WindowMemory(True, [(16, 16)])
    learn(memory, (0, (0, 0, 1, 2), 1, torch.tensor([[float("nan"), 2.0]]), None))
    memory.after_step(ALONE)
    assert memory.memory[0, 0, 0, :3].tolist() == [UNKNOWN, 2, UNKNOWN]


def notes_of_two():
    found = torch.Generator().manual_seed(0)
    return [(photo, (3, 4, 20, 20), 1, torch.rand(20, 20, generator=found), None) for photo in (1, 0)]


def test_processes_learn_what_all_have_found(run_processes):
    alone = WindowMemory(True, SIZES)
    for _ in range(2):
        learn(alone, *notes_of_two())

    def work(rank):
        memory, processes = WindowMemory(True, SIZES), Processes.current()
        for _ in range(2):
            photo, window, factor, errors, mask = notes_of_two()[rank]
            memory.note(photo, window, factor, errors, mask, (rank, 2))
            memory.after_step(processes)
        return memory.memory

    for found in run_processes(work):
        assert torch.equal(found, alone.memory)


def test_saving_changes_nothing_and_a_loaded_memory_goes_on_alike():
    memory, saves, again = learnt(), learnt(), WindowMemory(True, SIZES)
    state: dict[str, torch.Tensor] = {}
    for step in range(4):
        if step == 2:
            again.load_state_dict(state)
        for each in (memory, saves) if step < 2 else (memory, saves, again):
            learn(each, *notes_of_two())
        state = {name: value.clone() for name, value in saves.state_dict().items()}
        assert set(state) == {"memory", "pending"}
    for each in (saves, again):
        assert torch.equal(each.memory, memory.memory)
        each.after_step(ALONE)
    memory.after_step(ALONE)
    assert torch.equal(again.memory, memory.memory)


def test_a_state_of_other_images_begins_anew():
    memory = learnt()
    learn(memory, *notes_of_two())
    memory.load_state_dict({"memory": torch.zeros(2, 5, BLOCKS, BLOCKS), "pending": torch.zeros(1, 3)})
    memory.after_step(ALONE)
    assert bool((memory.memory == UNKNOWN).all())


def test_a_state_without_a_memory_changes_nothing():
    memory, before = learnt(), learnt().memory
    memory.load_state_dict({})
    assert torch.equal(memory.memory, before)


def test_nothing_is_kept_or_asked_for_without_the_rule():
    off, on = WindowMemory(False, SIZES), learnt()
    assert off.state_dict() == {}
    off.load_state_dict(on.state_dict())
    assert not WindowMemory(True, []).is_on


@pytest.mark.parametrize("pending", [torch.zeros(2, 5), torch.zeros(4), torch.full((1, 1 + 3 * BLOCKS**2), 9.0)])
def test_a_damaged_state_is_refused(pending):
    with pytest.raises(RuntimeError, match="altered"):
        learnt().load_state_dict(learnt().state_dict() | {"pending": pending})


@pytest.mark.parametrize("share", [0, 1.5])
def test_shares_out_of_range(share):
    with pytest.raises(ValueError, match="uniform share"):
        WindowMemory(True, SIZES, uniform_share=share)
