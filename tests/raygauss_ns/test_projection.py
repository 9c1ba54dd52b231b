import pytest
import torch

from raygauss_ns.projection import View, project, smallest_resolved_scale


def test_smallest_resolved_scale():
    looking_down_z = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [-4.0]])], 1)  # camera at z = 4
    nearer = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [-2.0]])], 1)
    intrinsics = torch.tensor([[100.0, 100.0, 50.0, 50.0, 100.0, 100.0]]).expand(2, 6)
    means = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 9.0], [0.0, 1.5, 0.0]])
    floors = smallest_resolved_scale(means, torch.stack([looking_down_z, nearer]), intrinsics)
    # The origin: 2 away from the nearer one; z = 3: only before the farther; behind both; outside the nearer's image.
    torch.testing.assert_close(floors, torch.tensor([0.01, 0.005, 0.0, 0.02]))


def test_projection_of_a_point_by_hand():
    """A camera at (1, 2, 3) that looks along -z: the point one down, two to the right and four ahead of it."""
    camera = torch.cat([torch.eye(3), torch.tensor([[-1.0], [-2.0], [-3.0]])], 1)
    column, row, depth = project(torch.tensor([[3.0, 1.0, -1.0]]), camera, (100.0, 80.0, 50.0, 40.0))
    assert (column.item(), row.item(), depth.item()) == (pytest.approx(100.0), pytest.approx(60.0), pytest.approx(4.0))


def test_view():
    camera = torch.cat([torch.eye(3), torch.tensor([[-1.0], [-2.0], [-3.0]])], 1)
    view = View(camera, (100.0, 80.0, 50.0, 40.0, 100.0, 80.0), (0, 0, 20, 50))
    assert view.share == pytest.approx(0.125)
    torch.testing.assert_close(view.distances(torch.tensor([[1.0, 5.0, 7.0]])), torch.tensor([5.0]))
    assert not view._replace(pinhole=False).misses(torch.tensor([[1.0, 1.8, 0.0]])).any()
    assert view.misses(torch.tensor([[1.0, 1.8, 0.0]])).all()
