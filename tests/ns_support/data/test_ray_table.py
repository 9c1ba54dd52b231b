"""Rays that are looked up: those of the lenses, as `test_rays.py` has them compared with closed forms."""

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from ns_support.commands.given_rays import given_rays
from ns_support.data import ray_table
from ns_support.data.ray_table import RayTable, UnitRays
from ns_support.rays import ExactRayGenerator, camera_lenses

WIDTH, HEIGHT = 31, 21
DISTORTION = torch.tensor([[0.1, -0.05, 0.01, -0.002, 0.002, -0.003]])


def cameras_of(kind=CameraType.PERSPECTIVE, focals=(25.0, 25.0, 30.0), distortion=DISTORTION, turn=1.0):
    angles = torch.linspace(0, 2, len(focals))
    poses = torch.eye(4).repeat(len(focals), 1, 1)
    poses[:, 0, 0] = poses[:, 2, 2] = angles.cos() * turn
    poses[:, 0, 2], poses[:, 2, 0] = angles.sin() * turn, -angles.sin() * turn
    poses[:, :3, 3] = torch.randn(len(focals), 3)
    own = torch.tensor(focals)[:, None]
    coefficients = None if distortion is None else distortion.expand(len(focals), -1)
    return Cameras(
        poses[:, :3], own, own, 15.0, 10.0, WIDTH, HEIGHT, distortion_params=coefficients, camera_type=kind
    )  # fmt: skip


def pixels(count):
    camera = torch.arange(count).repeat_interleave(WIDTH * HEIGHT)
    place = torch.arange(WIDTH * HEIGHT).repeat(count)
    return torch.stack([camera, place // WIDTH, place % WIDTH], -1)


@pytest.mark.parametrize("kind", [CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.EQUIRECTANGULAR])
@pytest.mark.parametrize("distortion", [None, DISTORTION])
@pytest.mark.parametrize("at_once", [1 << 20, 100])
def test_rays_are_those_of_the_lenses(kind, distortion, at_once, monkeypatch):
    monkeypatch.setattr(ray_table, "_PIXELS_AT_ONCE", at_once)
    cameras = cameras_of(kind, distortion=distortion)
    lenses = camera_lenses(cameras)
    assert RayTable.fits(cameras, lenses)
    found = RayTable(cameras, lenses).rays(*pixels(3).unbind(-1))
    wanted = ExactRayGenerator(cameras)(pixels(3))
    for name in ("origins", "directions", "pixel_area", "camera_indices"):
        own, theirs = getattr(found, name), getattr(wanted, name)
        assert own.dtype == theirs.dtype
        torch.testing.assert_close(own, theirs, rtol=0, atol=3e-7)
    assert (found.directions.norm(dim=-1) - 1).abs().max() < 1e-6
    if wanted.fars is None:
        assert found.fars is None
    else:
        assert torch.equal(found.nears, wanted.nears)
        assert torch.equal(found.fars, wanted.fars)


def test_pixels_without_a_ray_end_where_they_begin():
    cameras = cameras_of(CameraType.FISHEYE, focals=(4.0,), distortion=None)
    found = RayTable(cameras, camera_lenses(cameras)).rays(*pixels(1).unbind(-1))
    wanted = ExactRayGenerator(cameras)(pixels(1))
    assert 0 < int((found.fars == 0).sum()) < WIDTH * HEIGHT
    assert torch.equal(found.fars, wanted.fars)


def test_models_take_them_as_they_are():
    cameras = cameras_of()
    rays = RayTable(cameras, camera_lenses(cameras)).rays(*pixels(3).unbind(-1))
    assert given_rays(rays, "cpu") is rays
    assert isinstance(rays[:5], UnitRays)
    torch.testing.assert_close(given_rays(rays[:5], "cpu").directions, rays.directions[:5])


def test_what_there_is_no_table_for(monkeypatch):
    cameras = cameras_of()
    lenses = camera_lenses(cameras)
    assert not RayTable.fits(cameras_of(turn=1.001), lenses)
    stereo = cameras_of(CameraType.OMNIDIRECTIONALSTEREO_L)
    assert not RayTable.fits(stereo, camera_lenses(stereo))
    monkeypatch.setattr(ray_table, "_MOST_KEPT", 2 * WIDTH * HEIGHT - 1)
    assert not RayTable.fits(cameras, lenses)
