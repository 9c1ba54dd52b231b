import pytest
import torch

from hardmine_ns.rendering.fraction_map import FractionMap


def test_shares_are_chosen_over_seen():
    fractions = FractionMap(4)
    points = torch.tensor([[0.1, 0.1, 0.1]] * 4 + [[0.9, 0.1, 0.1]] * 2)
    fractions.add(points, torch.tensor([0, 4, 5]))
    where = torch.tensor([[0.2, 0.05, 0.0], [1.0, 0.2, 0.2], [0.5, 0.5, 0.5]])
    torch.testing.assert_close(fractions.at(where), torch.tensor([0.25, 1.0, 0.0]))


def test_every_sample_counts_when_all_are_chosen():
    fractions = FractionMap(8)
    points = torch.rand(100, 3)
    fractions.add(points, None)
    assert fractions.at(points).eq(1).all()


def test_the_past_fades():
    fractions = FractionMap(1)
    points = torch.rand(10, 3)
    for _ in range(500):
        fractions.add(points, None)
    for _ in range(500):
        fractions.add(points, torch.tensor([3]))
    assert 0.1 <= fractions.at(points).max() < 0.11


def test_corners_of_the_cube_are_inside():
    fractions = FractionMap(4)
    corners = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    fractions.add(corners, None)
    assert fractions.at(corners).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="resolution"):
        FractionMap(0)
