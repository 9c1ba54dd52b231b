import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle

from ns_support.commands.export_rays import groups_of_directions, image_rays, is_of_texels, texel_rays


def cameras(height=6, width=8):
    poses = torch.eye(4)[None, :3].repeat(3, 1, 1)
    poses[:, 0, 3] = torch.arange(3.0)
    return Cameras(poses, 10.0, 10.0, width / 2, height / 2, width, height)


def texels(count=500):
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    lengths = torch.full((count, 1), 0.2)
    return RayBundle(torch.rand(count, 3), directions, torch.ones(count, 1), nears=0 * lengths, fars=lengths)


class TestImageRays:
    @pytest.mark.parametrize(("wanted", "rows"), [(1, 1), (17, 2), (48, 6), (10**6, 6)])
    def test_whole_rows(self, wanted, rows):
        rays = image_rays(cameras(), 1, wanted)
        assert rays.shape == (rows, 8)
        assert (rays.origins == torch.tensor([1.0, 0.0, 0.0])).all()

    def test_each_ray_goes_through_its_own_pixel(self):
        """Back to pixel coordinates: x / z and y / z times the focal length."""
        d = image_rays(cameras(), 0, 48).directions
        columns, rows = d[..., 0] / -d[..., 2] * 10 + 4, d[..., 1] / d[..., 2] * 10 + 3
        torch.testing.assert_close(columns, torch.arange(8.0).expand(6, 8) + 0.5)
        torch.testing.assert_close(rows, torch.arange(6.0)[:, None].expand(6, 8) + 0.5)

    def test_every_row_has_its_turn(self):
        tops = {round(float(image_rays(cameras(), 0, 8).directions[0, :, 1].mean()), 1) for _ in range(60)}
        assert len(tops) >= 5


class TestTexelRays:
    def test_only_rays_from_many_places_with_ends_are_texels(self):
        image = cameras().generate_rays(0, keep_shape=True)
        assert not is_of_texels(image)
        cropped = RayBundle(image.origins, image.directions, image.pixel_area, nears=image.pixel_area)
        assert not is_of_texels(cropped)
        assert is_of_texels(texels())

    def test_same_stretches_beyond_the_near_plane(self):
        rays, moved = texels(), texel_rays(texels(), 0.3)
        assert moved.nears.min() >= 0.3
        for end in ("nears", "fars"):
            a = rays.origins + getattr(rays, end) * rays.directions
            torch.testing.assert_close(moved.origins + getattr(moved, end) * moved.directions, a)

    def test_no_direction_becomes_up(self):
        rays = texels(3)
        rays.directions[1] = 0.0
        assert torch.equal(texel_rays(rays, 0.0).directions[1], torch.tensor([0.0, 0.0, 1.0]))

    def test_groups_hold_each_ray_once_turned_a_little_about_its_middle(self):
        rays = texel_rays(texels(4000), 0.3)
        owners, angles = [], []
        for own, group in groups_of_directions(rays, 512):
            assert (group.directions == group.directions[0]).all()
            owners.append(own)
            middle = 0.5 * (rays.nears + rays.fars)[own]
            torch.testing.assert_close(
                group.origins + middle * group.directions, rays.origins[own] + middle * rays.directions[own]
            )
            angles.append((group.directions * rays.directions[own]).sum(-1).clamp(max=1).arccos().rad2deg())
        assert torch.equal(torch.cat(owners).sort().values, torch.arange(4000))
        assert len(owners) <= 512
        assert torch.cat(angles).mean() < 4
        assert torch.cat(angles).max() < 8
