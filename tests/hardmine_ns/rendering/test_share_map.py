import pytest
import torch

from hardmine_ns.rendering.share_map import ShareMap


def test_shares_are_chosen_over_seen():
    shares = ShareMap(4)
    points = torch.tensor([[0.1, 0.1, 0.1]] * 4 + [[0.9, 0.1, 0.1]] * 2)
    shares.add(points, torch.tensor([0, 4, 5]))
    where = torch.tensor([[0.2, 0.05, 0.0], [1.0, 0.2, 0.2], [0.5, 0.5, 0.5]])
    torch.testing.assert_close(shares.at(where), torch.tensor([0.25, 1.0, 0.0]))


def test_every_sample_counts_when_all_are_chosen():
    shares = ShareMap(8)
    points = torch.rand(100, 3)
    shares.add(points, None)
    assert shares.at(points).eq(1).all()


def test_the_past_fades():
    shares = ShareMap(1)
    points = torch.rand(10, 3)
    for _ in range(500):
        shares.add(points, None)
    for _ in range(500):
        shares.add(points, torch.tensor([3]))
    assert 0.1 <= shares.at(points).max() < 0.11


def test_corners_of_the_cube_are_inside():
    shares = ShareMap(4)
    corners = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    shares.add(corners, None)
    assert shares.at(corners).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="resolution"):
        ShareMap(0)
