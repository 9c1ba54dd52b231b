import torch

from ns_support.sampling.running import RATE, UNKNOWN, mixed, moved, with_means


def test_a_running_mean_begins_with_what_was_found():
    old, new = torch.tensor([UNKNOWN, 0.0, 2.0]), torch.tensor([3.0, 1.0, 1.0])
    torch.testing.assert_close(moved(old, new), torch.tensor([3.0, RATE, 2 - RATE]))


def test_what_is_unknown_counts_as_the_mean_of_what_is_not():
    memory, counts = torch.tensor([1.0, UNKNOWN, 4.0]), torch.tensor([2, 5, 1])
    assert with_means(memory, counts).tolist() == [1, 2, 4]
    assert with_means(torch.full((3,), UNKNOWN), counts).tolist() == [1, 1, 1]


def test_a_part_is_drawn_uniformly():
    wanted, even = torch.tensor([0.0, 30.0]).double(), torch.tensor([0.25, 0.75]).double()
    torch.testing.assert_close(mixed(wanted, even, 0.2), torch.tensor([0.05, 0.95]).double())
    assert torch.equal(mixed(torch.zeros(2).double(), even, 0.2), even)
