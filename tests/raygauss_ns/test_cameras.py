import pytest
import torch
from nerfstudio.cameras.cameras import CameraType

from raygauss_ns.cameras import camera_extent, camera_rays, camera_view, is_pinhole, pinhole_cameras


def test_camera_extent_and_pinholes(make_cameras):
    cameras = make_cameras(2)
    assert camera_extent(cameras) == pytest.approx(4.4)
    assert camera_extent(cameras[0:1]) == 1.0
    poses, intrinsics = pinhole_cameras(cameras, torch.device("cpu"))
    origin_seen = poses @ torch.tensor([0.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(origin_seen, torch.tensor([[0.0, 0.0, -4.0]]).expand(2, 3), atol=1e-5, rtol=0)
    assert intrinsics[0].tolist() == [40.0, 40.0, 15.0, 10.5, 30.0, 21.0]


@pytest.mark.parametrize("kind", [CameraType.PERSPECTIVE, CameraType.FISHEYE])
@pytest.mark.parametrize("distortion", [None, [0.1, 0.02, 0.0, 0.0, 0.001, 0.002]])
def test_camera_rays_are_nerfstudios(make_cameras, kind, distortion):
    cameras = make_cameras(3, kind=kind)
    if distortion is not None:
        cameras.distortion_params = torch.tensor(distortion).expand(3, 6)
    rays = camera_rays(cameras[1:2], (3, 5, 7, 11))
    expected = cameras.generate_rays(camera_indices=1, keep_shape=True)[3:10, 5:16]
    torch.testing.assert_close(rays.origins, expected.origins)
    torch.testing.assert_close(rays.directions, expected.directions, atol=1e-6, rtol=0)


def test_a_view_tells_pinholes_from_other_cameras(make_cameras):
    camera = make_cameras(2)[0:1]
    view = camera_view(camera, (1, 2, 3, 4))
    assert view.window == (1, 2, 3, 4)
    assert view.share == pytest.approx(12 / 630)
    assert view.pinhole
    torch.testing.assert_close(view.distances(torch.zeros(1, 3)), torch.tensor([4.0]))
    camera.distortion_params = torch.full((1, 6), 0.1)
    assert not camera_view(camera, (1, 2, 3, 4)).pinhole
    assert not is_pinhole(make_cameras(1, kind=CameraType.FISHEYE)[0:1])
