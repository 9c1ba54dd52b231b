import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle

from ns_support.corrections.poses import (
    PoseRefinement,
    PoseRefinementConfig,
    aligned,
    telling_tiles,
    without_shared_motion,
)
from ns_support.errors import UserError
from ns_support.rays import camera_rays

COUNT = 7


def turn_matrix(vector):
    """exp of a rotation vector [3]."""
    skew = torch.zeros(3, 3, dtype=vector.dtype)
    skew[2, 1], skew[0, 2], skew[1, 0] = vector
    return torch.linalg.matrix_exp(skew - skew.T)


@pytest.fixture
def cameras():
    generator = torch.Generator().manual_seed(0)
    turns = torch.stack([turn_matrix(torch.randn(3, generator=generator)) for _ in range(COUNT)])
    poses = torch.cat([turns, 2 * torch.randn(COUNT, 3, 1, generator=generator)], 2)
    return Cameras(poses, 30.0, 30.0, 8.0, 6.0, 16, 12, camera_type=CameraType.PERSPECTIVE)


@pytest.fixture
def make(cameras):
    def make(mode="SO3xR3", size=0.02, **settings):
        config = PoseRefinementConfig(mode=mode, refine_from=0.0, **settings)
        refinement = PoseRefinement(config, cameras)
        with torch.no_grad():
            refinement.pose_adjustment.normal_(std=size, generator=torch.Generator().manual_seed(1))
        return refinement

    return make


def one(cameras, index):
    camera = cameras[index : index + 1]
    camera.metadata = {"cam_idx": index}
    return camera


@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
def test_a_camera_and_its_rays_move_alike(make, cameras, mode):
    refinement = make(mode)
    for index in range(COUNT):
        camera, motion = refinement.corrected(one(cameras, index))
        given = camera_rays(cameras[index]).flatten()
        given.camera_indices = torch.full((len(given), 1), index)
        moved = refinement.corrected_rays(given)
        expected = camera_rays(camera).flatten()
        torch.testing.assert_close(moved.origins, expected.origins, rtol=0, atol=3e-6)
        torch.testing.assert_close(moved.directions, expected.directions, rtol=0, atol=3e-6)
        assert not torch.allclose(moved.directions, given.directions, atol=1e-4)
        assert motion.tolist() == [0.0] * 6


@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
def test_the_motion_has_the_gradient_of_the_pose(make, cameras, mode):
    """Both for a camera (through its motion) and for rays, of any function of points that move with the camera."""
    refinement, index = make(mode).double(), 3
    camera = one(cameras, index)
    camera.camera_to_worlds = camera.camera_to_worlds.double()
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss(refinement):
        """Of points that are fixed in the camera's frame."""
        pose = refinement.corrected(camera)[0].camera_to_worlds[0]
        return ((points @ pose[:, :3].T + pose[:, 3]) * weights).sum()

    pose, motion = refinement.corrected(camera)[0].camera_to_worlds[0], refinement.corrected(camera)[1]
    world = points @ pose[:, :3].T + pose[:, 3]
    surrogate = ((world + motion[:3] + torch.linalg.cross(motion[3:].expand(5, 3), world)) * weights).sum()
    (found,) = torch.autograd.grad(surrogate, refinement.pose_adjustment)
    expected, step = torch.zeros(COUNT, 6, dtype=torch.float64), 1e-6
    with torch.no_grad():
        for i in range(6):
            values = []
            for sign in (1, -1):
                refinement.pose_adjustment[index, i] += sign * step
                values.append(loss(refinement))
                refinement.pose_adjustment[index, i] -= sign * step
            expected[index, i] = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_gradients_reach_the_corrections_through_rays(make):
    refinement = make().double()
    refinement.poses = refinement.poses.double()
    index = torch.tensor([[2], [2], [5]])
    draw = torch.Generator().manual_seed(2)
    rays = RayBundle(*(torch.randn(3, 3, generator=draw, dtype=torch.float64) for _ in range(2)), torch.ones(3, 1))
    rays.camera_indices = index

    def loss(adjustment):
        refinement.pose_adjustment.data = adjustment.data
        found = refinement.corrected_rays(rays)
        return (found.origins * torch.arange(1, 4)).sum() + (found.directions * torch.arange(3, 6)).sum()

    value = refinement.pose_adjustment.data.clone()
    (found,) = torch.autograd.grad(loss(refinement.pose_adjustment), refinement.pose_adjustment)
    for camera, axis in ((2, 0), (2, 4), (5, 5), (1, 3)):
        step = torch.zeros_like(value)
        step[camera, axis] = 1e-6
        expected = (loss(value + step) - loss(value - step)) / 2e-6
        assert float(found[camera, axis]) == pytest.approx(float(expected.detach()), rel=1e-6, abs=1e-7)


def test_at_first_and_in_evaluation_cameras_stand_where_the_data_say(make, cameras):
    untouched = make(size=0.0)
    assert torch.equal(untouched.corrected(one(cameras, 1))[0].camera_to_worlds, cameras[1:2].camera_to_worlds)
    moved = make()
    moved.progress, moved.config.refine_from = 0.05, 0.1
    assert moved.corrected(one(cameras, 1))[1] is None
    moved.eval()
    held_out = cameras[1:2]
    assert moved.corrected(held_out) == (held_out, None)
    rays = camera_rays(cameras[0]).flatten()
    assert moved.corrected_rays(rays) is rays


def test_what_all_cameras_share_is_taken_away_and_nothing_else(make, cameras):
    refinement = make()
    poses, unit = refinement.poses, refinement.unit
    own = without_shared_motion(refinement.pose_adjustment.detach(), poses, unit)
    v, w, s = torch.tensor([0.02, -0.01, 0.03]), torch.tensor([0.01, 0.02, -0.02]), 0.015
    offsets = poses[:, :, 3] - poses[:, :, 3].mean(0)
    shifts = v + torch.linalg.cross(w.expand_as(offsets), offsets) + s * offsets
    axes = poses[:, :, :3].transpose(1, 2)
    shared = torch.cat([(axes @ shifts[..., None])[..., 0] / unit, (axes @ w.expand_as(shifts)[..., None])[..., 0]], 1)
    torch.testing.assert_close(without_shared_motion(shared, poses, unit), torch.zeros(COUNT, 6), rtol=0, atol=1e-7)
    torch.testing.assert_close(without_shared_motion(own + shared, poses, unit), own, rtol=0, atol=1e-6)
    assert float((own - refinement.pose_adjustment).abs().max()) > 1e-3
    assert float(own.abs().max()) > 1e-2


@pytest.mark.parametrize("count", [1, 2])
def test_few_cameras_have_no_motion_of_their_own_that_could_be_told(make, cameras, count):
    adjustments = make().pose_adjustment.detach()[:count]
    left = without_shared_motion(adjustments, cameras.camera_to_worlds[:count], 2.0)
    assert bool(left.isfinite().all())
    assert float(left.norm()) < float(adjustments.norm())


def test_the_shared_motion_is_removed_while_training(make):
    refinement = make()
    before = refinement.pose_adjustment.detach().clone()
    refinement.after_step(7)
    assert torch.equal(refinement.pose_adjustment, before)
    refinement.after_step(49)
    expected = without_shared_motion(before, refinement.poses, refinement.unit)
    torch.testing.assert_close(refinement.pose_adjustment.detach(), expected)


def test_the_penalty_leaves_cameras_alone_that_have_not_moved(make):
    refinement = make(size=0.0, trans_l2_penalty=1.0, rot_l2_penalty=2.0)
    (gradient,) = torch.autograd.grad(refinement.penalty(0), refinement.pose_adjustment)
    assert not gradient.any()
    with torch.no_grad():
        refinement.pose_adjustment[0] = torch.tensor([0.1, 0.0, 0.0, 0.0, 0.2, 0.0])
    assert float(refinement.penalty(0)) == pytest.approx(0.1**2 + 2 * 0.2**2)
    assert float(refinement.penalty(torch.tensor([0, 3]))) == pytest.approx((0.1**2 + 2 * 0.2**2) / 2)


def test_the_group_is_nerfstudios(make):
    groups = {}
    make().get_param_groups(groups)
    assert {name: [tuple(p.shape) for p in group] for name, group in groups.items()} == {
        "camera_opt": [(COUNT, 6), (COUNT, 6, 6)]
    }


def test_a_camera_is_aligned(cameras):
    """Points seen by the camera are to be where another camera, which stands a little aside, sees them."""
    camera = cameras[2:3]
    wanted = camera.camera_to_worlds[0].clone()
    wanted[:, :3] = wanted[:, :3] @ turn_matrix(torch.tensor([0.01, -0.008, 0.005]))
    wanted[:, 3] += torch.tensor([0.02, -0.01, 0.03])
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))

    def seen(pose):
        return (points - pose[:, 3]) @ pose[:, :3]

    def loss(moved, motion):
        pose = moved.camera_to_worlds[0]
        back = points - motion[:3] - torch.linalg.cross(motion[3:].expand_as(points), points)
        return ((back - pose[:, 3]) @ pose[:, :3] - seen(wanted)).square().mean()

    found = aligned(camera, loss, 3.0).camera_to_worlds[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_tiles_are_where_there_is_something_to_see():
    image = torch.zeros(100, 130, 3)
    image[40:50, 70:80] = torch.rand(10, 10, 3, generator=torch.Generator().manual_seed(0))
    tiles = telling_tiles(image, 16, 3)
    assert len(tiles) == 9
    assert len(set(tiles)) == 9
    assert (32, 64, 16, 16) in tiles
    assert all(top + rows <= 100 and left + columns <= 130 for top, left, rows, columns in tiles)
    small = telling_tiles(image[:10, :12], 16, 3)  # nine that cover it, but for the rest of a division
    assert small == [(row, column, 3, 4) for row in (0, 3, 6) for column in (0, 4, 8)]


@pytest.mark.parametrize(
    ("setting", "value"), [("mode", "SE2"), ("refine_from", 1.0), ("trans_l2_penalty", -1.0), ("rot_l2_penalty", -0.1)]
)
def test_settings_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(UserError, match=f"camera-optimizer.{setting.replace('_', '-')}.*{value}"):
        PoseRefinementConfig(**{setting: value}).check()


def test_the_curvature_of_rays_is_that_of_gauss_and_newton(make):
    """Of grey colours, where nothing is estimated: 2 / (3 R) sum J^T J, J by automatic differentiation."""
    refinement = make(size=0.0).double()
    refinement.poses = refinement.poses.double()
    refinement.progress = 0.5
    draw, count = torch.Generator().manual_seed(4), 7
    rays = RayBundle(*(torch.randn(count, 3, generator=draw, dtype=torch.float64) for _ in range(2)), torch.ones(1))
    rays.camera_indices = torch.tensor([[2], [2], [5], [2], [5], [5], [5]])
    wanted = torch.rand(count, 1, generator=draw, dtype=torch.float64)

    def residuals():
        moved = refinement.corrected_rays(rays)
        shade = (moved.origins * torch.tensor([0.4, -1.0, 0.3])).sum(-1) + (moved.directions.sin()).sum(-1)
        return (shade[:, None] - wanted).expand(count, 3)

    expected = torch.zeros(COUNT, 6, 6, dtype=torch.float64)
    for ray, value in enumerate(residuals()):
        (slopes,) = torch.autograd.grad(value[0], refinement.pose_adjustment, retain_graph=True)
        photo = int(rays.camera_indices[ray])
        expected[photo] += 2 / count * torch.outer(slopes[photo], slopes[photo])
    squares = residuals().square()
    refinement.note_residuals(squares.sum(-1))
    squares.mean().backward()
    torch.testing.assert_close(refinement.curvature.grad, expected, rtol=2e-4, atol=1e-3)


@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
def test_refinement_begins_at_poses_that_were_found_before(make, cameras, mode):
    wanted = make("SO3xR3", size=0.05)
    with torch.no_grad():
        shared = without_shared_motion(wanted.pose_adjustment, wanted.poses, wanted.unit)
        wanted.pose_adjustment.copy_(shared)
    refinement = make(mode)
    refinement.start_at(wanted.apply_to_cameras())
    torch.testing.assert_close(refinement.apply_to_cameras(), wanted.apply_to_cameras(), rtol=0, atol=2e-5)
    for i in range(COUNT):
        moved, _ = refinement.corrected(one(cameras, i))
        torch.testing.assert_close(moved.camera_to_worlds[0], refinement.apply_to_cameras()[i], rtol=0, atol=1e-6)
