"""Only the Gaussians that rays may meet are coloured and cast at, and nothing else changes."""

import pytest
import torch

from ns_support.lenses.lens import LensType, make_lens
from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast
from raygauss_ns.color import ColorBasis, view_colors
from raygauss_ns.gaussians import renderer
from raygauss_ns.gaussians.projection import rows_in_cone
from raygauss_ns.gaussians.renderer import image_rays, render

COUNT = 500
SETTINGS = CastSettings(step=0.02, density_threshold=0.1)


def scene():
    generator = torch.Generator().manual_seed(0)
    means = 4 * torch.rand(COUNT, 3, generator=generator) - 2
    scales = 0.02 * 10 ** torch.rand(COUNT, 3, generator=generator)
    densities = 0.05 * 1000 ** torch.rand(COUNT, generator=generator)
    gaussians = Gaussians(means, scales, torch.randn(COUNT, 4, generator=generator), densities)
    shapes = ((3,), (8, 3), (2, 3), (2,), (2, 3))
    basis = ColorBasis(*(torch.randn(COUNT, *shape, generator=generator) for shape in shapes))
    return [value.requires_grad_() for value in gaussians], [value.requires_grad_() for value in basis]


def crop(kind, inside):
    """The rays of a corner of an image, from outside of the scene or from among the Gaussians."""
    lens = make_lens(kind, (40.0, 40.0), (20.0, 15.0), (40, 30))
    pose = torch.tensor([[1.0, 0, 0, 0.3], [0, 1, 0, -0.2], [0, 0, 1, 0.1 if inside else 5.0]])
    rays = image_rays(lens, pose, near=0.05)
    row, column = torch.meshgrid(torch.arange(30), torch.arange(40), indexing="ij")
    corner = ((row < 12) & (column < 10)).flatten().nonzero()[:, 0]
    rays = rays.select(corner)
    return Rays(*rays[:4], 10)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", [LensType.PERSPECTIVE, LensType.FISHEYE])
def test_image_and_gradients_are_those_of_all_gaussians(kind, inside):
    rays, results = crop(kind, inside), []
    for some in (True, False):
        gaussians, basis = scene()
        if some:
            out = render(Gaussians(*gaussians), ColorBasis(*basis), rays, SETTINGS)
        else:
            colors = view_colors(ColorBasis(*basis), gaussians[0], rays.origins[0])
            out = cast(Gaussians(*gaussians), colors, rays, SETTINGS)
        weights = torch.randn(len(rays.origins), 5, generator=torch.Generator().manual_seed(1))
        (torch.cat([out.rgb, out.transmittance[:, None], out.depth[:, None]], 1) * weights).sum().backward()
        results.append([*out, *(value.grad for value in (*gaussians, *basis))])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(
            found.detach(), expected.detach(), rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )


@pytest.mark.parametrize("inside", [False, True])
def test_none_is_left_out_that_a_ray_meets_and_many_are(inside):
    gaussians, basis = scene()
    rays = crop(LensType.PERSPECTIVE, inside)
    colors = view_colors(ColorBasis(*basis), gaussians[0], rays.origins[0])
    open_field = Gaussians(*gaussians[:3], gaussians[3])
    # Without absorption on the way each Gaussian that a ray meets has a gradient.
    cast(open_field, colors, rays, SETTINGS).transmittance.log().sum().backward()
    met = gaussians[3].grad.nonzero()[:, 0].tolist()
    rows = rows_in_cone(open_field, rays.origins[0], rays.directions, 0.1).tolist()
    assert set(met) <= set(rows)
    assert len(rows) < COUNT * (0.6 if inside else 0.4)


def test_what_is_not_finite_is_left_to_the_caster_and_wide_cones_leave_nothing_out():
    gaussians = [value.detach().clone() for value in scene()[0]]
    gaussians[0][3] = float("nan")
    gaussians[0][4] = torch.tensor([0.3, -0.2, 5.0])  # where the rays begin
    rays = crop(LensType.PERSPECTIVE, False)
    rows = rows_in_cone(Gaussians(*gaussians), rays.origins[0], rays.directions, 0.01).tolist()
    assert {3, 4} <= set(rows)
    around = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    assert rows_in_cone(Gaussians(*gaussians), rays.origins[0], around, 0.1) is None


def test_rays_that_meet_nothing(monkeypatch):
    gaussians, basis = scene()
    away = Rays(*crop(LensType.PERSPECTIVE, False)[:4], 10)
    away = away._replace(directions=-away.directions)
    monkeypatch.setattr(renderer, "_MANY", 1.0)
    out = render(Gaussians(*gaussians), ColorBasis(*basis), away, SETTINGS)
    assert bool((out.transmittance == 1).all())
    out.rgb.sum().backward()
    assert all(value.grad is None or not value.grad.any() for value in gaussians)
