import pytest
import torch
from nerfstudio.cameras.cameras import CameraType

from ns_support.lenses.lens import LensType
from ns_support.rays import camera_extent
from raygauss_ns.cameras import camera_view, observed_view, posed_lenses


def test_camera_extent_and_lenses(make_cameras):
    cameras = make_cameras(2)
    assert camera_extent(cameras) == pytest.approx(4.4)
    assert camera_extent(cameras[0:1]) == 1.0
    poses, lenses = posed_lenses(cameras, torch.device("cpu"))
    origin_seen = poses @ torch.tensor([0.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(origin_seen, torch.tensor([[0.0, 0.0, -4.0]]).expand(2, 3), atol=1e-5, rtol=0)
    assert lenses[0][1:7] == (40.0, 40.0, 15.0, 10.5, 30, 21)


def test_a_view_has_the_cameras_lens(make_cameras):
    camera = make_cameras(2)[0:1]
    view = camera_view(camera, (1, 2, 3, 4))
    assert view.window == (1, 2, 3, 4)
    assert view.fraction == pytest.approx(12 / 630)
    assert view.lens.is_pinhole
    torch.testing.assert_close(view.distances(torch.zeros(1, 3)), torch.tensor([4.0]))
    camera.distortion_params = torch.full((1, 6), 0.1)
    assert not camera_view(camera, (1, 2, 3, 4)).lens.is_pinhole
    assert camera_view(make_cameras(1, kind=CameraType.FISHEYE)[0:1], (1, 2, 3, 4)).lens.kind is LensType.FISHEYE


def test_density_control_needs_no_view_of_a_whole_image(make_cameras):
    """Unless distances count."""
    camera = make_cameras(2)[0:1]
    whole = (0, 0, 21, 30)
    assert observed_view(camera, whole, False) is None
    assert observed_view(camera, whole, True).window == whole
    assert observed_view(camera, (1, 0, 20, 30), False).window == (1, 0, 20, 30)
