import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from ns_support.corrections.view_change import view_change
from ns_support.rays import camera_rays

UNIT = 2.5
PARALLEL = CameraType.ORTHOPHOTO


def painted(rays):
    """A plane across the view, painted smoothly: colours, and the distance along each ray."""
    normal, offset = torch.tensor([0.2, -0.1, 1.0]), -2.0
    depth = (offset - rays.origins @ normal) / (rays.directions @ normal)
    points = rays.origins + depth[..., None] * rays.directions
    waves = points @ torch.tensor([[2.0, 1.0, 0.3], [-0.7, 2.2, 0.4], [1.5, -1.0, -0.2]]).T
    return 0.5 + 0.4 * waves.sin(), depth[..., None]


def camera(kind, pose):
    return Cameras(pose[None, :3], 60.0, 62.0, 31.5, 24.0, 64, 48, camera_type=kind)[0:1]


@pytest.mark.parametrize("kind", [CameraType.PERSPECTIVE, CameraType.FISHEYE, PARALLEL])
@pytest.mark.parametrize("axis", range(6))
def test_it_predicts_the_next_image(kind, axis):
    """Turned and shifted in the camera's own frame, along each axis: the image as it then is, to first order."""
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.2, 0.1], [0.2, 0.0, -0.15], [-0.1, 0.15, 0.0]]))
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, torch.tensor([0.3, -0.2, 0.4])
    rays = camera_rays(camera(kind, pose))
    rgb, depth = painted(rays)
    changes = view_change(rgb, depth, rays, pose[:3], UNIT)
    motion = torch.zeros(6)
    motion[axis] = 2e-3
    own = torch.eye(4)
    own[:3, 3] = UNIT * motion[:3]
    own[:3, :3] += torch.linalg.cross(motion[3:].expand(3, 3), torch.eye(3)).T
    after, _ = painted(camera_rays(camera(kind, pose @ own)))
    inside = (slice(2, -2), slice(2, -2))
    found, expected = (changes @ motion)[inside], (after - rgb)[inside]
    # A shift of parallel rays along themselves changes nothing; of the others each axis changes something.
    largest = expected.abs().max()
    assert float(largest) > 1e-4 or (kind == PARALLEL and axis == 2)
    assert float((found - expected).abs().max()) < max(0.06 * float(largest), 2e-5)


def test_where_rays_do_not_spread_nothing_is_told():
    rays = camera_rays(camera(CameraType.PERSPECTIVE, torch.eye(4)))
    rays.directions = torch.tensor([0.0, 0.0, -1.0]).expand_as(rays.directions)
    changes = view_change(torch.rand(48, 64, 3), torch.ones(48, 64, 1), rays, torch.eye(4)[:3], UNIT)
    assert not changes.any()
