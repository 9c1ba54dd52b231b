"""The gradient with respect to a camera's motion, against central differences of images of cameras that really move."""

import pytest
import torch

from ns_support.lenses.lens import LensType, make_lens
from raygauss_ns.casting import CastSettings, Gaussians, Rays
from raygauss_ns.color import ColorBasis
from raygauss_ns.gaussians.renderer import image_rays, render

COUNT = 12
# Neither the end of a ray nor the cut-off moves: at both the image jumps, as the reference does.
SETTINGS = CastSettings(step=0.05, density_threshold=1e-9, transmittance_threshold=0.0)
POSE = torch.tensor([[0.8, 0.0, 0.6, 1.5], [0.36, 0.8, -0.48, -1.0], [-0.48, 0.6, 0.64, 2.0]], dtype=torch.float64)
STEP = 1e-5


def scene():
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    gaussians = Gaussians(0.4 * draw(COUNT, 3), 0.2 + 0.1 * draw(COUNT, 3).abs(), draw(COUNT, 4), 1 + draw(COUNT).abs())
    return gaussians, ColorBasis(*(0.3 * draw(COUNT, *shape) for shape in ((3,), (8, 3), (2, 3), (2,), (2, 3))))


def moved(origins, directions, motion):
    """Origins and directions after the rigid motion x -> exp(w) x + v."""
    skew = torch.zeros(3, 3, dtype=torch.float64)
    skew[2, 1], skew[0, 2], skew[1, 0] = motion[3:]
    turn = torch.linalg.matrix_exp(skew - skew.T)
    return origins @ turn.T + motion[:3], directions @ turn.T


def rays_of(kind):
    """[R, 3] origins and directions: a pinhole's, those of two centres, or parallel ones."""
    lens = make_lens(LensType.PERSPECTIVE, (9.0, 9.0), (4.0, 3.0), (8, 6))
    rays = image_rays(lens, POSE)
    origins, directions = rays.origins.double(), torch.nn.functional.normalize(rays.directions.double(), dim=-1)
    if kind == "two centres":
        origins = origins.clone()
        origins[::2] += 0.1
    if kind == "parallel":
        sideways = torch.linspace(-0.3, 0.3, len(origins), dtype=torch.float64)[:, None]
        directions = (-origins[:1]).expand_as(origins) / origins[0].norm()
        origins = origins + sideways * torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    return origins, directions


@pytest.mark.parametrize("kind", ["pinhole", "two centres", "parallel"])
def test_the_gradient_is_that_of_a_camera_that_moves(kind):
    (gaussians, basis), (origins, directions) = scene(), rays_of(kind)
    weights = torch.randn(len(origins), 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(origins, directions, motion=None):
        nears = torch.zeros_like(origins[:, 0])
        rays = Rays(origins, directions, nears, torch.full_like(nears, torch.inf))
        out = render(gaussians, basis, rays, SETTINGS, motion=motion, backend="reference")
        return (torch.cat([out.rgb, out.transmittance[:, None], out.depth[:, None]], 1) * weights).sum()

    motion = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(origins, directions, motion), motion)
    expected = torch.zeros(6, dtype=torch.float64)
    for i in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[i] = STEP
        ahead, behind = loss(*moved(origins, directions, step)), loss(*moved(origins, directions, -step))
        expected[i] = (ahead - behind) / (2 * STEP)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6 * float(expected.abs().max()))


def test_nothing_else_changes():
    origins, directions = rays_of("pinhole")
    weights = torch.randn(len(origins), 3, generator=torch.Generator().manual_seed(1))
    results = []
    for motion in (None, torch.zeros(6, requires_grad=True)):
        gaussians, basis = scene()
        tensors = [value.float().requires_grad_() for value in (*gaussians, *basis)]
        nears = torch.zeros(len(origins))
        rays = Rays(origins.float(), directions.float(), nears, torch.full_like(nears, torch.inf), 8)
        settings = SETTINGS._replace(density_threshold=0.1)
        out = render(Gaussians(*tensors[:4]), ColorBasis(*tensors[4:]), rays, settings, motion=motion)
        (out.rgb * weights).sum().backward()
        results.append([out.rgb.detach(), *(value.grad for value in tensors)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
