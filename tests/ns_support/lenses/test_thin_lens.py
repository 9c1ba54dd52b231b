"""Points of a lens are spread evenly, and rays through them meet where the image is to be sharp."""

import math

import pytest
import torch

from ns_support.lenses.lens import LensType, in_world, make_lens, pixel_centers
from ns_support.lenses.thin_lens import LensPoint, lens_points, through_lens

APERTURE, FOCUS = 0.3, 2.5
FLAT = (LensType.PERSPECTIVE, LensType.ORTHOPHOTO)
FOCAL = {LensType.PERSPECTIVE: 20.0, LensType.ORTHOPHOTO: 8.0}


def lens(kind, distorted=False):
    coefficients = {LensType.FISHEYE624: [0.03, -0.01] + [0.0] * 10}.get(kind, [0.05, -0.01] + [0.0] * 4)
    focal = FOCAL.get(kind, 7.0)
    return make_lens(kind, (focal, focal), (10.5, 7.5), (21, 15), coefficients if distorted else ())


def directions():
    """Of a few sights, [8, 3]; the first is the axis."""
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.cat([torch.tensor([[0, 0, -1.0]]), torch.randn(7, 3)]).double(), dim=-1)


@pytest.mark.parametrize("kind", LensType)
def test_points_are_spread_evenly_over_a_disc_as_each_ray_sees_it(kind):
    offsets = torch.tensor([point.offset for point in lens_points(kind, APERTURE, FOCUS, 512)]).double()
    for direction in directions()[: 1 if kind in FLAT else None]:
        across = torch.linalg.vector_norm(offsets - (offsets @ direction)[:, None] * direction, dim=-1)
        # Of a disc's area, the fraction s^2 is within s of its radius.
        for part in (0.3, 0.5, 0.8, 1.0):
            inside = float((across <= part * APERTURE / 2).double().mean())
            assert inside == pytest.approx(part**2, abs=0.02)
        assert float(offsets.mean(0).norm()) < 0.01 * APERTURE


@pytest.mark.parametrize("kind", [LensType.PERSPECTIVE, LensType.FISHEYE])
def test_points_follow_from_the_seed(kind):
    first, again, other = (lens_points(kind, APERTURE, FOCUS, 9, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("distorted", [False, True])
@pytest.mark.parametrize("kind", LensType)
def test_rays_meet_where_it_is_sharp(kind, distorted):
    shape = lens(kind, distorted)
    sharp = shape.rays(*pixel_centers((0, 0, 15, 21), torch.device("cpu")))
    exist = slice(None) if sharp.exist is None else sharp.exist
    distance = torch.full((15, 21, 1), FOCUS).double()
    if kind in FLAT:
        distance = FOCUS / -sharp.directions[..., 2:]
    begins = torch.zeros(15, 21, 3).double() if sharp.origins is None else sharp.origins
    meeting = begins + distance * sharp.directions
    for point in lens_points(kind, APERTURE, FOCUS, 5):
        rays = through_lens(kind, sharp, point)
        assert torch.allclose(torch.linalg.vector_norm(rays.directions, dim=-1), torch.ones(()).double())
        torch.testing.assert_close(rays.origins.expand(15, 21, 3), begins + torch.tensor(point.offset).double())
        to_meeting = meeting - rays.origins
        missed = torch.linalg.cross(rays.directions, to_meeting, dim=-1).norm(dim=-1)[exist]
        assert float(missed.max()) < 1e-12
        assert bool(((rays.directions * to_meeting).sum(-1)[exist] > 0).all())


@pytest.mark.parametrize("kind", [LensType.PERSPECTIVE, LensType.FISHEYE, LensType.EQUIRECTANGULAR])
def test_rays_start_in_one_point_to_the_last_bit(kind):
    """Colours are computed once for all rays that do."""
    sharp = lens(kind).rays(*pixel_centers((0, 0, 15, 21), torch.device("cpu")))
    pose = torch.tensor([[0.6, 0.0, 0.8, 1.7], [0.0, 1.0, 0.0, 0.3], [-0.8, 0.0, 0.6, -2.1]])
    origins = in_world(through_lens(kind, sharp, LensPoint((0.1, -0.07, 0.03), FOCUS)), pose).origins
    assert origins.shape == (15, 21, 3)
    assert bool((origins == origins[0, 0]).all())


def test_an_orthophotos_rays_stay_parallel_to_the_last_bit():
    sharp = lens(LensType.ORTHOPHOTO).rays(*pixel_centers((0, 0, 15, 21), torch.device("cpu")))
    directions = through_lens(LensType.ORTHOPHOTO, sharp, LensPoint((0.1, -0.07, 0.0), FOCUS)).directions
    assert bool((directions == directions[0, 0]).all())
    assert float(directions[0, 0, 0]) == pytest.approx(-0.1 / math.hypot(0.1, 0.07, FOCUS))
