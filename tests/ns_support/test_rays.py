"""Rays of every camera against closed forms written out in NumPy's float64 for one pixel at a time."""

import copy
import math

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.scene_box import OrientedBox
from scipy.spatial.transform import Rotation

from ns_support.errors import UserError
from ns_support.rays import LENS, ExactRayGenerator, camera_lenses, camera_rays, downscaled

WIDTH, HEIGHT = 31, 21
CX, CY = 15.5, 10.2  # odd, and the principal point at a pixel's centre: there nerfstudio's fisheye is 0 / 0
OPENCV = (0.1, -0.05, 0.01, -0.002, 0.002, -0.003)
ARIA = (0.03, -0.01, 0.002, 0.001, -0.0003, 0.0001, 0.0008, -0.0005, 0.001, -0.0002, 0.0007, 0.0003)
KINDS = [
    (CameraType.PERSPECTIVE, None),
    (CameraType.PERSPECTIVE, OPENCV),
    (CameraType.FISHEYE, None),
    (CameraType.FISHEYE, OPENCV),
    (CameraType.FISHEYE624, ARIA),
    (CameraType.EQUIRECTANGULAR, None),
    (CameraType.EQUIRECTANGULAR, OPENCV),  # which it does not have
    (CameraType.OMNIDIRECTIONALSTEREO_L, None),
    (CameraType.OMNIDIRECTIONALSTEREO_R, OPENCV),
    (CameraType.VR180_L, None),
    (CameraType.VR180_R, OPENCV),
    (CameraType.ORTHOPHOTO, OPENCV),
]
FOCAL = {CameraType.PERSPECTIVE: (25.0, 24.0), CameraType.FISHEYE: (12.0, 11.0), CameraType.FISHEYE624: (9.0, 9.5)}


def make_cameras(kind, distortion=None, count=1):
    rotations = torch.from_numpy(Rotation.random(count, random_state=3).as_matrix()).float()
    poses = torch.cat([rotations, torch.linspace(-1, 2, 3 * count).view(count, 3, 1)], 2)
    fx, fy = FOCAL.get(kind, (15.0, 20.0))
    coefficients = None if distortion is None else torch.tensor(distortion).expand(count, -1)
    return Cameras(poses, fx, fy, CX, CY, WIDTH, HEIGHT, distortion_params=coefficients, camera_type=kind)


@pytest.fixture
def assert_rays(expected_ray):
    """`assert_rays(rays, camera, pixels)`: rays [N] are those of pixels [N], as near as float32 gets."""

    def check(rays, camera, pixels):
        for origin, direction, (row, column) in zip(rays.origins, rays.directions, pixels, strict=True):
            expected_origin, expected_direction = expected_ray(camera, row, column)
            np.testing.assert_allclose(direction.numpy(), expected_direction, atol=1.5e-7, rtol=0)
            np.testing.assert_allclose(origin.numpy(), expected_origin, atol=3e-7, rtol=0)

    return check


@pytest.mark.parametrize(("kind", "distortion"), KINDS)
def test_rays_of_a_window(assert_rays, kind, distortion):
    camera = make_cameras(kind, distortion)
    pixels = [(row, column) for row in range(7, 20, 3) for column in range(9, 26, 2)]
    assert (10, 15) in pixels  # the optical axis
    rays = camera_rays(camera, (7, 9, 13, 17))
    assert rays.shape == (13, 17)
    assert rays.fars is None
    assert_rays(rays[::3, ::2].flatten(), camera, pixels)
    for _ in range(2):  # from a whole image that is made and kept, and from the one kept
        again = camera_rays(camera, (7, 9, 13, 17))
        torch.testing.assert_close(again.directions, rays.directions, atol=6e-8, rtol=0)


@pytest.mark.parametrize(("kind", "distortion"), KINDS)
def test_a_whole_image_and_its_corners(assert_rays, kind, distortion):
    camera = make_cameras(kind, distortion)
    rays = camera_rays(camera)
    assert rays.shape == (HEIGHT, WIDTH)
    corners = [(0, 0), (0, WIDTH - 1), (HEIGHT - 1, 0), (HEIGHT - 1, WIDTH - 1)]
    rows, columns = torch.tensor(corners).T
    assert_rays(rays[rows, columns], camera, corners)


@pytest.mark.parametrize(("kind", "distortion"), KINDS)
def test_batches_of_pixels(assert_rays, kind, distortion):
    cameras = make_cameras(kind, distortion, count=3)
    random = torch.Generator().manual_seed(0)
    picked = [torch.randint(most, (40,), generator=random) for most in (3, HEIGHT, WIDTH)]
    rays = ExactRayGenerator(cameras)(torch.stack(picked, 1))
    assert torch.equal(rays.camera_indices, picked[0][:, None])
    for i in range(3):
        own = picked[0] == i
        assert_rays(rays[own], cameras[i], list(zip(picked[1][own].tolist(), picked[2][own].tolist(), strict=True)))


def test_a_batch_of_all_kinds_of_cameras(assert_rays):
    every = [make_cameras(*case) for case in KINDS if case[0] is not CameraType.FISHEYE624]
    joined = {
        name: torch.cat([getattr(camera, name) for camera in every])
        for name in ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height", "camera_type")
    }
    joined["fx"][1] = 27.0  # cameras of one kind that differ
    coefficients = [torch.zeros(1, 6) if c.distortion_params is None else c.distortion_params for c in every]
    cameras = Cameras(**joined, distortion_params=torch.cat(coefficients))
    indices = torch.tensor([(i, row, column) for i in range(len(every)) for row, column in ((2, 3), (20, 30))])
    rays = ExactRayGenerator(cameras)(indices[torch.randperm(len(indices))])
    ordered = ExactRayGenerator(cameras)(indices)
    assert rays.shape == (len(indices),)
    for i in range(len(every)):
        assert_rays(ordered[2 * i : 2 * i + 2], cameras[i], [(2, 3), (20, 30)])


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize(("kind", "distortion"), KINDS)
def test_nerfstudio_means_the_same_rays(kind, distortion):
    """Where it is right: not on the axis of a fisheye, nor at its side (fisheye624), nor with needless coefficients."""
    if kind.value > CameraType.EQUIRECTANGULAR.value and kind is not CameraType.FISHEYE624:
        distortion = None
    camera = make_cameras(kind, distortion)
    rays, theirs = camera_rays(camera), camera.generate_rays(camera_indices=0, keep_shape=True)
    right = theirs.directions.isfinite().all(-1)
    if kind is CameraType.FISHEYE624:
        right &= rays.directions @ -camera.camera_to_worlds[0, :, 2] > 0.01
    assert right.float().mean() > 0.8
    torch.testing.assert_close(rays.directions[right], theirs.directions[right], atol=2e-6, rtol=0)
    torch.testing.assert_close(rays.origins, theirs.origins, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_nerfstudios_fisheye_has_no_axis(assert_rays):
    """The reason for the line above, and for `camera_rays`."""
    camera = make_cameras(CameraType.FISHEYE)
    camera.cy = torch.full_like(camera.cy, 10.5)
    assert camera.generate_rays(camera_indices=0, keep_shape=True).directions[10, 15].isnan().all()
    assert camera_rays(camera).directions.isfinite().all()
    assert_rays(camera_rays(camera)[10:11, 15], camera, [(10, 15)])


def test_a_wide_fisheye624_looks_back(assert_rays):
    """Beyond 90 degrees, where the tangent that nerfstudio has in it changes its sign."""
    camera = make_cameras(CameraType.FISHEYE624, (0.0,) * 12)
    camera.fx, camera.fy = torch.full_like(camera.fx, 7.0), torch.full_like(camera.fy, 7.0)
    assert_rays(camera_rays(camera)[10:11, 29], camera, [(10, 29)])
    axis = -camera.camera_to_worlds[0, :, 2]
    assert camera_rays(camera).directions[10, 29] @ axis < 0


def test_pixels_without_a_ray_end_where_they_begin():
    camera = make_cameras(CameraType.PERSPECTIVE, (-0.9, 0.0, 0.0, 0.0, 0.0, 0.0))
    rays = camera_rays(camera)
    none = rays.fars[..., 0] == 0
    assert 0 < none.sum() < none.numel()
    assert none[0, 0]
    assert not none[10, 15]
    assert (rays.nears == 0).all()
    assert rays.fars[~none].isinf().all()
    indices = torch.tensor([[0, 0, 0], [0, 10, 15]])
    batch = ExactRayGenerator(camera)(indices)
    assert batch.fars[:, 0].tolist() == [0.0, math.inf]
    # A box does not bring them back.
    box = OrientedBox(R=torch.eye(3), T=camera.camera_to_worlds[0, :, 3], S=torch.ones(3) * 9)
    cut = camera_rays(camera, obb_box=box)
    assert (cut.fars[none] == 0).all()
    assert (cut.fars[~none] > 4).all()


@pytest.mark.parametrize(("kind", "distortion"), KINDS)
def test_rays_are_cut_to_a_box(kind, distortion):
    """Odd sizes, windows, and a box turned against the axes: entry and exit lie on its faces."""
    camera = make_cameras(kind, distortion)
    turn = torch.from_numpy(Rotation.from_euler("xyz", (0.3, 0.5, 0.7)).as_matrix()).float()
    center = camera.camera_to_worlds[0, :, 3] - 3 * camera.camera_to_worlds[0, :, 2]
    size = torch.tensor([2.0, 1.5, 2.5])
    box = OrientedBox(R=turn, T=center, S=size)
    for window, shape in ((None, (HEIGHT, WIDTH)), ((4, 7, 15, 9), (15, 9))):
        rays = camera_rays(camera, window, box)
        assert rays.nears.shape == rays.fars.shape == (*shape, 1)
        hit = (rays.nears < rays.fars)[..., 0]
        assert hit.any()
        for t in (rays.nears, rays.fars):
            local = (rays.origins + t * rays.directions - center)[hit] @ turn
            outermost = (local.abs() / (0.5 * size)).amax(-1)
            torch.testing.assert_close(outermost, torch.ones_like(outermost), atol=1e-4, rtol=0)


def test_kept_rays_are_those_of_the_lens_that_was_asked_for(assert_rays):
    """Two lenses and two poses by turns, windows of all sizes."""
    one, other = make_cameras(CameraType.FISHEYE, OPENCV, 2), make_cameras(CameraType.PERSPECTIVE, OPENCV, 2)
    for cameras, index in ((one, 0), (one, 1), (other, 1), (one, 0), (one, 1), (other, 0), (other, 1)):
        rays = camera_rays(cameras[index : index + 1], (2 + index, 3, 4, 5))
        assert_rays(rays[0, :2], cameras[index], [(2 + index, 3), (2 + index, 4)])


def test_on_a_gpu_directions_of_a_pinhole_are_kept_and_turned(monkeypatch):
    """On a pretended one: rays of a window, of the whole image, and of another lens are those of the CPU."""
    pytest.importorskip("triton")
    from pretended_gpu import pretended_gpu

    cameras = make_cameras(CameraType.PERSPECTIVE)
    wanted = [(camera, window, camera_rays(camera, window)) for camera, window in _asked_for(cameras)]
    with pretended_gpu(monkeypatch) as counts:
        for camera, window, bundle in wanted:
            on_gpu = copy.copy(camera)
            on_gpu.camera_to_worlds = camera.camera_to_worlds.to("cuda")
            on_gpu.metadata = {LENS: camera_lenses(camera)[0]}
            counts.clear()
            found = camera_rays(on_gpu, window)
            assert found.pixel_area.shape == bundle.pixel_area.shape
            for name in ("origins", "directions"):
                torch.testing.assert_close(getattr(found, name).inner, getattr(bundle, name), rtol=0, atol=3e-7)
        assert counts.kernels.total() <= 2, str(counts)


def _asked_for(cameras):
    smaller = downscaled(cameras[0:1], 2)
    return [(cameras[0:1], (3, 5, 4, 6)), (smaller, None), (cameras[0:1], None), (cameras[0:1], (0, 1, 5, 4))]


def test_lenses_are_told_once_and_bad_ones_named():
    cameras = make_cameras(CameraType.PERSPECTIVE, OPENCV, count=3)
    first, second, _ = camera_lenses(cameras)
    assert first is second
    cameras.fx = torch.tensor([[25.0], [0.0], [25.0]])
    with pytest.raises(UserError, match="Camera 1 can't be used: focal lengths must be positive"):
        camera_lenses(cameras)


@pytest.mark.parametrize(("kind", "distortion"), KINDS)
def test_a_pixel_of_a_downscaled_camera_is_where_its_block_of_pixels_is(kind, distortion):
    camera = make_cameras(kind, distortion)
    before = camera.fx.clone()
    smaller = downscaled(camera, 3)
    assert (int(smaller.height), int(smaller.width)) == (HEIGHT // 3, WIDTH // 3)
    rays, whole = camera_rays(smaller), camera_rays(camera)
    # The middle of a block of 3 x 3 is its middle pixel.
    middle = whole[1 : 3 * (HEIGHT // 3) : 3, 1 : 3 * (WIDTH // 3) : 3]
    torch.testing.assert_close(rays.directions, middle.directions, rtol=0, atol=3e-7)
    torch.testing.assert_close(rays.origins, middle.origins, rtol=0, atol=3e-7)
    assert torch.equal(camera.fx, before)
    assert downscaled(camera, 1) is camera
