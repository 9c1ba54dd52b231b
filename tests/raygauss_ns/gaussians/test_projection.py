import pytest
import torch

from ns_support.lenses.lens import LensType, make_lens
from raygauss_ns.gaussians.projection import View, smallest_resolved_scale


def camera_at(*position):
    """World to camera of one that looks along -z."""
    return torch.cat([torch.eye(3), -torch.tensor(position)[:, None]], 1)


def test_smallest_resolved_scale_of_pinholes():
    lens = make_lens(LensType.PERSPECTIVE, (100.0, 100.0), (50.0, 50.0), (100, 100))
    cameras = torch.stack([camera_at(0.0, 0.0, 4.0), camera_at(0.0, 0.0, 2.0)])
    means = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 9.0], [0.0, 1.5, 0.0]])
    floors = smallest_resolved_scale(means, cameras, [lens] * 2)
    # The origin: 2 away from the nearer one; z = 3: only before the farther; behind both; outside the nearer's image.
    torch.testing.assert_close(floors, torch.tensor([0.01, 0.005, 0.0, 0.02]))


def test_smallest_resolved_scale_of_different_lenses():
    pinhole = make_lens(LensType.PERSPECTIVE, (100.0, 50.0), (50.0, 50.0), (100, 100))
    panorama = make_lens(LensType.EQUIRECTANGULAR, (100.0, 100.0), (100.0, 50.0), (200, 100))
    photo = make_lens(LensType.ORTHOPHOTO, (10.0, 20.0), (50.0, 50.0), (100, 100))
    means = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    cameras = torch.stack([camera_at(0.0, 0.0, 4.0), camera_at(0.0, 0.0, 5.0), camera_at(0.0, 0.0, 8.0)])
    floors = smallest_resolved_scale(means, cameras, [pinhole, panorama, photo])
    # Sizes of a pixel at the origin: 4 / 100, 5 pi / 100, 1 / 20. Behind the others, 4 pi / 100.
    torch.testing.assert_close(floors, torch.tensor([0.5 * 0.04, 0.5 * 4 * torch.pi / 100]))


def test_view():
    lens = make_lens(LensType.PERSPECTIVE, (100.0, 80.0), (50.0, 40.0), (100, 80))
    view = View(camera_at(1.0, 2.0, 3.0), lens, (0, 0, 20, 50))
    assert view.fraction == pytest.approx(0.125)
    torch.testing.assert_close(view.distances(torch.tensor([[1.0, 5.0, 7.0]])), torch.tensor([5.0]))
    # In the image's centre, in the window, behind the camera.
    means = torch.tensor([[1.0, 1.8, 0.0], [0.0, 3.0, 0.0], [1.0, 1.8, 9.0]])
    assert view.misses(means).tolist() == [True, False, False]


def test_a_window_of_a_panorama_misses_what_is_behind():
    lens = make_lens(LensType.EQUIRECTANGULAR, (100.0, 100.0), (100.0, 50.0), (200, 100))
    view = View(camera_at(0.0, 0.0, 0.0), lens, (0, 50, 100, 100))
    assert view.misses(torch.tensor([[0.1, 0.0, -1.0], [0.1, 0.0, 1.0], [-0.1, 5.0, 1.0]])).tolist() == [
        False,
        True,
        True,
    ]


def test_an_orthophoto_knows_no_distance():
    lens = make_lens(LensType.ORTHOPHOTO, (10.0, 10.0), (50.0, 50.0), (100, 100))
    view = View(camera_at(0.0, 0.0, 0.0), lens, (0, 0, 100, 100))
    assert view.distances(torch.tensor([[0.0, 0.0, -9.0]])).tolist() == [0.0]
