"""The memory of blocks of pixels: what it draws, what it weighs, what it learns. Needs torch only."""

import pytest
import torch

from hardmine_ns.mining.blocks import BLOCK, BlockMemory
from ns_support.concurrency.processes import Processes

SIZES = [(20, 13), (8, 8), (3, 30)]


def masks() -> list[torch.Tensor]:
    """A block without any pixel, a few with some; one mask of three dimensions."""
    shown = [torch.rand(size, generator=torch.Generator().manual_seed(i)) < 0.6 for i, size in enumerate(SIZES)]
    shown[0][:8, :8] = False
    shown[2] = shown[2][..., None]
    return shown


def learnt(memory: BlockMemory) -> BlockMemory:
    """With an error and a cost of its own for each block."""
    memory.errors.copy_(torch.rand(len(memory.errors), generator=torch.Generator().manual_seed(1)) ** 3)
    memory.costs.copy_(1 + 9 * torch.rand(len(memory.costs), generator=torch.Generator().manual_seed(2)))
    return memory


def every_pixel(shown: list[torch.Tensor] | None) -> torch.Tensor:
    """[P, 3] of all that may be drawn."""
    images = (
        [torch.ones(size) for size in SIZES]
        if shown is None
        else [m.reshape(s) for m, s in zip(shown, SIZES, strict=True)]
    )
    return torch.cat(
        [torch.cat([torch.full((len(p), 1), i), p], 1) for i, m in enumerate(images) for p in [m.nonzero()]]
    )


@pytest.mark.parametrize("masked", [False, True])
def test_pixels_are_drawn_as_often_as_their_weights_say(masked):
    torch.manual_seed(0)
    shown = masks() if masked else None
    memory, pixels = learnt(BlockMemory(SIZES, shown)), every_pixel(shown)
    assert memory.num_pixels == len(pixels)
    found, counts = memory.draw(400 * len(pixels)).unique(dim=0, return_counts=True)
    assert torch.equal(found, pixels)  # each of them, and no other
    expected = 400 / memory.weights(pixels)
    assert ((counts - expected).abs() < 6 * expected.sqrt()).all()
    assert float(memory.weights(pixels).reciprocal().mean()) == pytest.approx(1)


def test_the_weighted_mean_is_that_of_all_pixels():
    """Whatever is averaged: here a value that has nothing to do with the errors, and one that follows them."""
    torch.manual_seed(0)
    memory, pixels = learnt(BlockMemory(SIZES, masks())), every_pixel(masks())
    for values in (torch.rand(len(pixels)), memory.errors[memory.blocks_of(pixels)]):
        table = torch.zeros(3, 30, 30)
        table[tuple(pixels.T)] = values
        means = []
        for _ in range(400):
            drawn = memory.draw(50)
            means.append((memory.weights(drawn) * table[tuple(drawn.T)]).mean())
        found = torch.stack(means)
        assert float(found.mean()) == pytest.approx(float(values.mean()), abs=4 * float(found.std()) / 20)


def test_no_weight_exceeds_the_inverse_of_the_uniform_share():
    memory = learnt(BlockMemory(SIZES, uniform_share=0.25))
    memory.errors[0] = 1e6
    assert memory.weights(every_pixel(None)).max() <= 4 + 1e-5
    assert memory.weights(torch.tensor([[0, 0, 0]])) < 0.2


@pytest.mark.parametrize(("power", "expected"), [(0.0, 1.0), (0.5, None)])
def test_weights_to_a_power(power, expected):
    whole, part = learnt(BlockMemory(SIZES)), learnt(BlockMemory(SIZES, weight_power=power))
    pixels = every_pixel(None)
    torch.testing.assert_close(part.weights(pixels), whole.weights(pixels) ** power)
    if expected is not None:
        assert (part.weights(pixels) == expected).all()


def test_blocks_that_cost_less_are_drawn_more():
    memory = BlockMemory([(8, 16)], uniform_share=0.1)
    memory.errors.copy_(torch.tensor([1.0, 1.0]))
    memory.costs.copy_(torch.tensor([1.0, 16.0]))
    share = memory.draw(10_000)[:, 2].lt(8).float().mean()
    assert float(share) == pytest.approx(0.1 / 2 + 0.9 * 4 / 5, abs=1e-3)  # systematic: no noise
    memory.errors.copy_(torch.tensor([1.0, 0.0]))
    memory.costs.copy_(torch.tensor([1.0, 1.0]))
    memory._chance = None
    memory.draw(1)
    assert memory.gain == pytest.approx(2)


def test_what_is_learnt():
    memory = BlockMemory([(8, 24)])
    pixels = torch.tensor([[0, 1, 1], [0, 2, 2], [0, 0, 9]])
    memory.learn(pixels, torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([10.0, 20.0, 5.0]))
    assert memory.errors.tolist() == [2, -1, -1]  # the mean at first; what is not finite is nothing
    memory.learn(pixels[:2], torch.tensor([7.0, 7.0]), torch.tensor([15.0, 15.0]))
    assert memory.errors[0] == pytest.approx(3)
    assert memory.costs[0] == pytest.approx(15)
    memory._chance = None
    assert torch.allclose(memory.weights(every_pixel(None)[:1]), torch.ones(1))  # unknown ones count as the mean


def test_probabilities_hold_for_a_while_and_then_follow():
    memory = BlockMemory([(8, 16)])
    pixels = torch.tensor([[0, 0, 0], [0, 0, 8]])
    before = memory.weights(pixels)
    for _ in range(63):
        memory.learn(pixels, torch.tensor([1.0, 0.0]), torch.ones(2))
    assert torch.equal(memory.weights(pixels), before)
    memory.learn(pixels, torch.tensor([1.0, 0.0]), torch.ones(2))
    assert memory.weights(pixels).tolist() == pytest.approx([1 / 1.8, 5])


def test_processes_remember_what_all_have_drawn(run_processes):
    def work(rank):
        memory = BlockMemory([(8, 16)], processes=Processes.current())
        memory.learn(torch.tensor([[0, 0, 8 * rank]]), torch.tensor([1.0 + rank]), torch.tensor([2.0]))
        return memory.errors.tolist()

    assert run_processes(work) == [[1.0, 2.0], [1.0, 2.0]]


def test_saved_and_loaded():
    memory, other = learnt(BlockMemory(SIZES)), BlockMemory(SIZES)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.errors, memory.errors)
    assert torch.equal(other.weights(every_pixel(None)), memory.weights(every_pixel(None)))


def test_saving_changes_nothing_and_what_is_loaded_goes_on_alike():
    undisturbed, saves = (learnt(BlockMemory(SIZES)) for _ in range(2))
    loaded, pixels = BlockMemory(SIZES), every_pixel(None)
    for memory in (undisturbed, saves):
        memory.weights(pixels)
        memory.learn(
            pixels, torch.rand(len(pixels), generator=torch.Generator().manual_seed(3)), torch.ones(len(pixels))
        )
    loaded.load_state_dict(saves.state_dict())
    for i in range(70):  # the probabilities are rebuilt in between
        weights = [memory.weights(pixels) for memory in (undisturbed, saves, loaded)]
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(weights[0], weights[2])
        assert undisturbed.gain == loaded.gain
        saves.state_dict()
        for memory in (undisturbed, saves, loaded):
            memory.learn(pixels[i : i + 9], torch.full((9,), 1.0 + i), torch.ones(9))


def test_a_state_that_contradicts_itself_is_refused():
    whole = learnt(BlockMemory(SIZES)).state_dict()
    for name in ("errors", "costs"):
        with pytest.raises(RuntimeError, match="errors, costs and chance are not of one size"):
            BlockMemory(SIZES).load_state_dict(whole | {name: whole[name][:-1]})
        with pytest.raises(RuntimeError, match="errors, costs and chance are not of one size"):
            BlockMemory(SIZES).load_state_dict({name: whole[name]})


@pytest.mark.parametrize("saved", [{}, BlockMemory([(99, 99)]).state_dict()])
def test_of_other_images_it_begins_anew(saved):
    memory = learnt(BlockMemory(SIZES))
    memory.load_state_dict(dict(saved), strict=True)
    assert (memory.errors == -1).all()
    assert (memory.weights(every_pixel(None)) == 1).all()


def test_settings_out_of_range():
    with pytest.raises(ValueError, match=r"uniform share must be in \(0, 1\].* got 0 and 1.0"):
        BlockMemory(SIZES, uniform_share=0)
    with pytest.raises(ValueError, match=r"got 0.2 and 2"):
        BlockMemory(SIZES, weight_power=2)
    with pytest.raises(ValueError, match="the masks hide every pixel"):
        BlockMemory([(BLOCK, BLOCK)], [torch.zeros(BLOCK, BLOCK)])
