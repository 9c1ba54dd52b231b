"""The definition itself: closed forms, convergence, additivity and its gradients by finite differences."""

import math
from itertools import pairwise

import pytest
import torch

from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast, whitening_matrices
from raygauss_ns.casting.reference import absorbed_fraction

EPS = 1e-9  # far below what these tests resolve: the field's jump at the border vanishes in it


def one_ray(far: float = 10.0) -> tuple[torch.Tensor, ...]:
    origin = torch.tensor([[0.1, -0.05, -3.0]], dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.tensor([[0.02, 0.03, 1.0]], dtype=torch.float64), dim=-1)
    return origin, direction, torch.zeros(1, dtype=torch.float64), torch.full((1,), far, dtype=torch.float64)


def one_gaussian(density: float = 3.0) -> Gaussians:
    return Gaussians(
        torch.tensor([[0.2, 0.1, 0.3]], dtype=torch.float64),
        torch.tensor([[0.3, 0.5, 0.2]], dtype=torch.float64),
        torch.tensor([[0.9, 0.3, -0.2, 0.4]], dtype=torch.float64),
        torch.tensor([density], dtype=torch.float64),
    )


def closed_form_transmittance(gaussians: Gaussians, far: float) -> float:
    """exp of minus the integral of sigma exp(-(h^2 + bb (t - t*)^2) / 2) over t in [0, far]: two erf."""
    origin, direction, _, _ = one_ray()
    a = whitening_matrices(gaussians.scales, gaussians.quats)[0]
    u, b = a @ (origin[0] - gaussians.means[0]), a @ direction[0]
    bb = float(b @ b)
    closest = -float(u @ b) / bb
    h2 = float((u + closest * b) @ (u + closest * b))
    width = math.sqrt(bb / 2)
    erfs = math.erf(width * (far - closest)) + math.erf(width * closest)
    tau = float(gaussians.densities[0]) * math.exp(-h2 / 2) * math.sqrt(math.pi) / (2 * width) * erfs
    return math.exp(-tau)


def transmittance_error(step: float, offset: float, far: float) -> float:
    settings = CastSettings(step, EPS, offset, transmittance_threshold=0.0)
    gaussians = one_gaussian()
    out = cast(gaussians, torch.ones(1, 3, dtype=torch.float64), Rays(*one_ray(far)), settings, backend="reference")
    return abs(float(out.transmittance) - closed_form_transmittance(gaussians, far))


@pytest.mark.parametrize("far", [10.0, 3.2])
def test_single_gaussian_agrees_with_erf(far):
    assert transmittance_error(step=1 / 1000, offset=0.5, far=far) < 1e-6


def test_midpoint_converges_quadratically_and_left_end_linearly():
    # The ray ends inside the Gaussian: over a whole Gaussian either rule converges faster than any power.
    far = 3.2
    midpoint = [transmittance_error(far / n, 0.5, far) for n in (16, 32, 64)]
    left = [transmittance_error(far / n, 0.0, far) for n in (16, 32, 64)]
    for coarse, fine in pairwise(midpoint):
        assert coarse / fine == pytest.approx(4, rel=0.1)
    for coarse, fine in pairwise(left):
        assert coarse / fine == pytest.approx(2, rel=0.1)
    assert midpoint[-1] < left[-1] / 10


def test_uniform_medium():
    # A Gaussian so wide that it is constant over the ray: T = e^-sigma L, rgb = (1 - T) c, depth in closed form.
    sigma, length = 0.7, 2.0
    gaussians = Gaussians(
        torch.zeros(1, 3, dtype=torch.float64),
        torch.full((1, 3), 1e6, dtype=torch.float64),
        torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64),
        torch.tensor([sigma], dtype=torch.float64),
    )
    color = torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64)
    settings = CastSettings(1e-3, 0.01, 0.5, 0.0)
    out = cast(gaussians, color, Rays(*one_ray(length)), settings, backend="reference")
    left = math.exp(-sigma * length)
    assert float(out.transmittance) == pytest.approx(left, rel=1e-9)
    torch.testing.assert_close(out.rgb, (1 - left) * color, rtol=1e-9, atol=0)
    expected_depth = (1 - left * (1 + sigma * length)) / sigma
    assert float(out.depth) == pytest.approx(expected_depth, rel=1e-6)


def test_optical_depths_add_up(random_scene, image_rays, cast_scene):
    settings = CastSettings(0.05, EPS, 0.5, 0.0)
    rays = image_rays(5, 5)
    a, b = random_scene(4, seed=1), random_scene(3, seed=2)
    both = type(a)(*(torch.cat(pair) for pair in zip(a, b, strict=True)))
    t_a, t_b, t_both = (cast_scene(scene, rays, settings, "reference")[:, 3] for scene in (a, b, both))
    assert t_both.min() < 0.9
    torch.testing.assert_close(t_both, t_a * t_b)


def test_equal_parts_of_a_gaussian_are_the_whole(random_scene, image_rays, cast_scene):
    rays, whole = image_rays(5, 5), random_scene(4, seed=1)
    halves = type(whole)(*(torch.cat([tensor, tensor]) for tensor in whole))
    halves = halves._replace(densities=halves.densities / 2)
    settings = CastSettings(0.05, EPS, 0.5, 0.0)
    expected = cast_scene(whole, rays, settings, "reference")
    torch.testing.assert_close(cast_scene(halves, rays, settings, "reference"), expected, rtol=1e-5, atol=1e-6)


def test_depth_of_a_thin_wall_is_its_distance():
    wall = one_gaussian(density=4000.0)._replace(
        means=torch.zeros(1, 3, dtype=torch.float64),
        scales=torch.tensor([[5.0, 5.0, 0.01]], dtype=torch.float64),
        quats=torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64),
    )
    settings = CastSettings(1e-3, 0.01, 0.5, 0.0)
    _, direction, _, _ = one_ray()
    out = cast(wall, torch.ones(1, 3, dtype=torch.float64), Rays(*one_ray()), settings, backend="reference")
    assert float(out.transmittance) < 1e-12
    assert float(out.depth) == pytest.approx(3.0 / float(direction[0, 2]), abs=0.05)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("rays", "count"), [(0, 3), (5, 0), (0, 0)])
def test_nothing_to_cast(rays, count, backend, random_scene, image_rays, differentiate):
    settings = CastSettings(0.05, 0.01)
    some = image_rays(5, 1).apply(lambda tensor: tensor[:rays])
    result = differentiate(random_scene(count), some, settings, torch.ones(rays, 5), backend)
    expected = torch.tensor([[0.0, 0, 0, 1, 0]], dtype=torch.float64).repeat(rays, 1)
    assert torch.equal(result.outputs, expected)
    assert all(bool((gradient == 0).all()) for gradient in result.gradients.values())
    assert [len(gradient) for gradient in result.gradients.values()] == [count] * 5


@pytest.mark.parametrize("output", ["rgb", "transmittance", "depth"])
@pytest.mark.parametrize("threshold", [0.0, 1e-2])
@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_gradients_by_finite_differences(fast, output, threshold, random_scene, image_rays):
    """Along random directions, or of every number by itself."""
    # With eps this small a support's border is 6 sigma out, and moving it by 1e-6 moves what is left by 1e-15.
    settings = CastSettings(0.11, EPS, 0.5, threshold)
    scene = random_scene(3, seed=4)
    scene = scene._replace(densities=4 * scene.densities).leaves(torch.float64)
    rays = image_rays(3, 2).apply(torch.Tensor.double)

    def run(means, scales, quats, densities, colors):
        out = cast(Gaussians(means, scales, quats, densities), colors, Rays(*rays), settings, backend="reference")
        return getattr(out, output)

    cotangent = torch.randn_like(run(*scene))
    assert torch.autograd.gradcheck(
        lambda *leaves: (run(*leaves) * cotangent).sum(), tuple(scene), atol=1e-7, rtol=1e-5, fast_mode=fast
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_absorbed_fraction(dtype):
    x = torch.cat([torch.zeros(1), torch.logspace(-12, 2, 400)]).to(dtype).requires_grad_()
    value = absorbed_fraction(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    exact = x.detach().double()
    expected, expected_slope = _absorbed_fraction_series(exact), _slope_series(exact)
    accuracy = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(value.detach().double(), expected, rtol=accuracy, atol=0)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=10 * accuracy, atol=0)
    assert value[0].item() == 1
    assert slope[0].item() == -0.5


def _absorbed_fraction_series(x):
    """Sum of (-x)^n / (n + 1)! below 1, the direct form above."""
    terms = sum((-x) ** n / math.factorial(n + 1) for n in range(20))
    return torch.where(x < 1, terms, -torch.expm1(-x) / x)


def _slope_series(x):
    terms = sum(n * (-1) ** n * x ** (n - 1) / math.factorial(n + 1) for n in range(1, 20))
    return torch.where(x < 1, terms, (torch.exp(-x) * (1 + x) - 1) / x**2)
