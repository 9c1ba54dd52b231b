import pytest
import torch

from ns_support.lenses.lens import LensType, make_lens
from raygauss_ns.casting import CastSettings, Gaussians
from raygauss_ns.color import ColorBasis
from raygauss_ns.gaussians import projection
from raygauss_ns.gaussians.projection import PIXEL_VARIANCE, View, pixel_angle, smallest_resolved_scale, widened
from raygauss_ns.gaussians.renderer import image_rays, render


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


def pair_of_images(kind):
    """A scene of Gaussians smaller than a pixel, a camera, and its lens for pixels four times as large."""
    generator = torch.Generator().manual_seed(0)
    count = 400
    means = (torch.rand(count, 3, generator=generator) - 0.5) * torch.tensor([3.0, 3.0, 0.5])
    scales = 0.01 + 0.02 * torch.rand(count, 3, generator=generator)
    quats = torch.randn(count, 4, generator=generator)
    gaussians = Gaussians(means, scales, quats, torch.full((count,), 30.0))
    pose = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]])
    focal = {LensType.PERSPECTIVE: 64.0, LensType.FISHEYE: 64.0, LensType.ORTHOPHOTO: 16.0}[kind]
    fine = make_lens(kind, (focal, focal), (32.0, 32.0), (64, 64))
    coarse = make_lens(kind, (focal / 4, focal / 4), (8.0, 8.0), (16, 16))
    return gaussians, pose, fine, coarse


@pytest.mark.parametrize(("variance", "most"), [(PIXEL_VARIANCE, 0.45), (1 / 12, 0.3)])
@pytest.mark.parametrize("kind", [LensType.PERSPECTIVE, LensType.FISHEYE, LensType.ORTHOPHOTO])
def test_a_small_image_of_widened_gaussians_is_the_large_ones_average(kind, variance, most, monkeypatch):
    """These are transparent, for which the variance of a pixel's square is the right one."""
    monkeypatch.setattr(projection, "PIXEL_VARIANCE", variance)
    gaussians, pose, fine, coarse = pair_of_images(kind)
    basis = ColorBasis(*(torch.zeros(400, *shape) for shape in ((3,), (0, 3), (0, 3), (0,), (0, 3))))
    basis = basis._replace(sh_base=torch.rand(400, 3, generator=torch.Generator().manual_seed(1)))
    settings = CastSettings(step=0.01, density_threshold=1e-3)

    def image(lens, gaussians):
        return render(gaussians, basis, image_rays(lens, pose), settings).rgb.view(int(lens.height), -1, 3)

    world_to_camera = torch.cat([pose[:, :3].T, -pose[:, :3].T @ pose[:, 3:]], 1)
    average = image(fine, gaussians).view(16, 4, 16, 4, 3).mean((1, 3))
    sampled = image(coarse, gaussians)
    averaged = image(coarse, widened(gaussians, world_to_camera, coarse, pixel_angle(fine)))
    errors = [float((found - average).square().mean().sqrt()) for found in (sampled, averaged)]
    assert errors[1] < most * errors[0], errors


def test_widening_keeps_the_mass_and_does_nothing_to_pixels_that_are_no_larger():
    gaussians, pose, fine, coarse = pair_of_images(LensType.PERSPECTIVE)
    world_to_camera = torch.cat([pose[:, :3].T, -pose[:, :3].T @ pose[:, 3:]], 1)
    wide = widened(gaussians, world_to_camera, coarse, pixel_angle(fine))
    mass, before = (g.densities * g.scales.prod(-1) for g in (wide, gaussians))
    torch.testing.assert_close(mass, before)
    size = 4 / 16 * (4 - gaussians.means[:, 2]) / 4
    added = (wide.scales.square() - gaussians.scales.square())[:, 0]
    torch.testing.assert_close(added, size.square() * (15 / 16) * PIXEL_VARIANCE, rtol=1e-4, atol=1e-8)
    assert widened(gaussians, world_to_camera, fine, pixel_angle(fine)) is gaussians
    assert widened(gaussians, world_to_camera, fine, pixel_angle(coarse)) is gaussians
    behind = gaussians._replace(means=gaussians.means + torch.tensor([0.0, 0.0, 9.0]))
    assert torch.equal(widened(behind, world_to_camera, coarse, pixel_angle(fine)).scales, gaussians.scales)
