"""A step that grows: the reference against closed forms and differences, the Numba kernels against the reference."""

import math

import pytest
import torch

from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast

WIDTH, HEIGHT = 9, 7
UNIFORM = CastSettings(
    step=0.05, density_threshold=1e-6, sample_offset=0.5, transmittance_threshold=0.0, samples_per_slab=16
)
GROWTHS = {
    "with distance": {"step_growth": 0.03},
    "with distance, bounded": {"step_growth": 0.03, "max_step": 0.09, "sample_offset": 0.0},
    "with transmittance": {"transmittance_exponent": 1 / 3, "max_step": 0.3},
    "with both": {"step_growth": 0.02, "transmittance_exponent": 1 / 3, "max_step": 0.2, "samples_per_slab": 40},
}
OUTPUT_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 2e-4


@pytest.fixture(params=GROWTHS.values(), ids=GROWTHS)
def growing(request):
    return UNIFORM._replace(**request.param)


@pytest.fixture(scope="module")
def scene(random_scene):
    return random_scene(60, seed=3)


@pytest.fixture(scope="module")
def rays(image_rays):
    return image_rays(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def cotangent():
    return torch.randn(WIDTH * HEIGHT, 5, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def assert_agree(differentiate, gradient_errors):
    """`assert_agree(scene, rays, settings, cotangent)`: kernels and reference, as an image and in no order."""

    def compare(scene, rays, settings, cotangent):
        expected = differentiate(scene, rays, settings, cotangent, "reference")
        for width in (WIDTH, 0):
            actual = differentiate(scene, rays, settings, cotangent, "cpu", width)
            error = (actual.outputs - expected.outputs).abs().max()
            assert error < OUTPUT_TOLERANCE, f"width {width}: {float(error):.1e}"
            for name, gradient_error in gradient_errors(actual.gradients, expected.gradients).items():
                assert gradient_error.below(GRADIENT_TOLERANCE), f"width {width}, {name}: {gradient_error}"
        return expected.outputs

    return compare


# ---- the reference ------------------------------------------------------------------------------------------------


def one_ray(settings, means, scale, density, far=60.0, requires_grad=False):
    """A ray along z from the origin at isotropic Gaussians on it; float64, by the reference."""
    n = len(means)
    density = torch.as_tensor(density, dtype=torch.float64).expand(n).clone().requires_grad_(requires_grad)
    gaussians = Gaussians(
        torch.tensor([[0.0, 0, mean] for mean in means], dtype=torch.float64),
        torch.full((n, 3), scale, dtype=torch.float64),
        torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).repeat(n, 1),
        density,
    )
    one = torch.ones(1, dtype=torch.float64)
    direction = torch.tensor([[0.0, 0, 1]], dtype=torch.float64)
    rays = Rays(0 * direction, direction, 0 * one, far * one)
    outputs = cast(gaussians, one.expand(n, 3), rays, settings, backend="reference")
    return outputs, density


@pytest.mark.parametrize("distance", [2.0, 30.0])
def test_transmittance_of_a_gaussian_has_a_closed_form(distance):
    """exp(-sigma s sqrt(2 pi)) whatever the steps, which are 0.05 at the near one and 0.3 at the far one."""
    settings = UNIFORM._replace(step_growth=0.01, density_threshold=1e-9)
    outputs, _ = one_ray(settings, [distance], 0.5, 1.0)
    assert float(outputs.transmittance) == pytest.approx(math.exp(-0.5 * math.sqrt(2 * math.pi)), rel=3e-4)
    assert float(outputs.depth / (1 - outputs.transmittance)) == pytest.approx(distance - 0.17, abs=0.01)


def test_samples_lie_where_the_ladder_says():
    """The sum over samples of one thin fog, spelled out: 16 samples of a step, then 16 of the next."""
    settings = UNIFORM._replace(step=0.5, step_growth=0.1, max_step=2.0, transmittance_exponent=0.5)
    outputs, _ = one_ray(settings, [20.0], 8.0, 0.05)
    begin, through, depth = 0.0, 1.0, 0.0
    while begin < 60:
        dt = min(max(0.1 * begin, 0.5) * through**-0.5, 2.0)
        for j in range(16):
            t = begin + (j + 0.5) * dt
            f = 0.05 * math.exp(-(((t - 20) / 8) ** 2) / 2)
            alpha = 1 - math.exp(-f * dt) if t < 60 and f > 1e-6 else 0.0
            depth += through * alpha * t
            through *= 1 - alpha
        begin += 16 * dt
    assert float(outputs.transmittance) == pytest.approx(through, rel=1e-9)
    assert float(outputs.depth) == pytest.approx(depth, rel=1e-9)
    assert through < 0.5


@pytest.mark.parametrize("growth", [{"step_growth": 0.02}, {"step_growth": 0.02, "max_step": 0.15}])
def test_gradients_against_central_differences(growth):
    """With growth along t alone the samples stay where they are when the Gaussians change."""
    settings = UNIFORM._replace(**growth)
    weights = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)

    def loss(density, grad=False):
        outputs, leaf = one_ray(settings, [2.0, 9.0], 0.7, density, requires_grad=grad)
        return (outputs.rgb @ weights).sum() + 0.3 * outputs.transmittance.sum() + 0.1 * outputs.depth.sum(), leaf

    value, leaf = loss(torch.tensor([0.4, 0.9]), grad=True)
    (gradient,) = torch.autograd.grad(value, leaf)
    for i in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = 1e-5
        density = leaf.detach()
        difference = (loss(density + step)[0] - loss(density - step)[0]) / 2e-5
        assert float(gradient[i]) == pytest.approx(float(difference), rel=1e-7)


def test_the_step_itself_has_no_gradient():
    """Where dt depends on T, the gradient is that of the samples where they are: that of a frozen ladder."""
    settings = UNIFORM._replace(step=0.4, transmittance_exponent=0.5, max_step=3.0)
    (outputs, leaf) = one_ray(settings, [4.0, 12.0], 2.0, [0.5, 0.3], requires_grad=True)
    (gradient,) = torch.autograd.grad(outputs.transmittance.sum(), leaf)
    begin, through = 0.0, 1.0
    expected = [0.0, 0.0]
    while begin < 60:
        dt = min(0.4 * through**-0.5, 3.0)
        for j in range(16):
            t = begin + (j + 0.5) * dt
            for i, (mean, density) in enumerate(((4.0, 0.5), (12.0, 0.3))):
                g = math.exp(-(((t - mean) / 2) ** 2) / 2)
                if density * g > 1e-6:
                    expected[i] += g * dt
                    through *= math.exp(-density * g * dt)
        begin += 16 * dt
    torch.testing.assert_close(gradient, -through * torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=0)


# ---- the kernels --------------------------------------------------------------------------------------------------


def test_agrees_with_the_reference(growing, scene, rays, cotangent, assert_agree):
    outputs = assert_agree(scene, rays, growing, cotangent)
    assert outputs[:, 3].min() < 0.3, "too little was seen"


def test_dense_and_stopping_rays(scene, rays, cotangent, assert_agree):
    """Transmittances fall from 1 to 1e-2, steps grow fourfold on the way, and most rays stop."""
    dense = scene._replace(densities=8 * scene.densities)
    settings = UNIFORM._replace(**GROWTHS["with both"])._replace(transmittance_threshold=1e-2)
    outputs = assert_agree(dense, rays, settings, cotangent)
    assert 0.2 < float((outputs[:, 3] <= 1e-2).double().mean()) < 1


def test_empty_space_and_ends_of_their_own(scene, rays, cotangent, assert_agree):
    """Twice the scene, far apart; rays that begin and end anywhere, some empty."""
    generator = torch.Generator().manual_seed(4)
    axis = rays.directions.mean(0)
    behind = scene._replace(means=scene.means * 4 + 40 * axis, scales=4 * scene.scales)
    both = type(scene)(*(torch.cat(parts) for parts in zip(scene, behind, strict=True)))
    thin = both._replace(densities=both.densities / 8)
    own = rays._replace(
        nears=4 * torch.rand(WIDTH * HEIGHT, generator=generator),
        fars=2 + 60 * torch.rand(WIDTH * HEIGHT, generator=generator),
    )
    own.fars[::5], own.fars[3], own.nears[7] = torch.inf, torch.nan, torch.inf
    settings = UNIFORM._replace(**GROWTHS["with both"])
    outputs = assert_agree(thin, own, settings, cotangent * torch.tensor([1, 1, 1, 1, 0.02]))
    assert outputs[:, 4].max() > 10, "nothing behind the gap was seen"
    assert outputs[3].tolist() == outputs[7].tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("width", [WIDTH, 0])
def test_a_growth_of_next_to_nothing_is_the_uniform_step(backend, width, scene, rays, cast_scene):
    uniform = cast_scene(scene, rays, UNIFORM, backend, width)
    for change in ({"step_growth": 1e-9}, {"step_growth": 0.5, "transmittance_exponent": 1.0, "max_step": 0.05}):
        growing = cast_scene(scene, rays, UNIFORM._replace(**change), backend, width)
        torch.testing.assert_close(growing, uniform, rtol=0, atol=1e-5)


def test_growth_0_is_the_uniform_step(scene, rays, cast_scene):
    """Bit for bit: the same kernels."""
    bounded = UNIFORM._replace(max_step=0.2)
    assert not bounded.grows
    assert torch.equal(cast_scene(scene, rays, bounded, "cpu", WIDTH), cast_scene(scene, rays, UNIFORM, "cpu", WIDTH))


def test_no_gaussians_and_no_rays(random_scene, rays, differentiate, growing, cotangent):
    nothing = differentiate(random_scene(0), rays, growing, cotangent, "cpu", WIDTH)
    assert torch.equal(nothing.outputs, torch.tensor([0.0, 0, 0, 1, 0]).double().expand(WIDTH * HEIGHT, 5))
    none = differentiate(random_scene(2), rays.apply(lambda t: t[:0]), growing, cotangent[:0], "cpu", 0)
    assert none.outputs.shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_growth": -0.1}, r"step_growth \(g\) must be finite and at least 0, got -0.1"),
        ({"step_growth": math.inf}, r"step_growth \(g\) must be finite"),
        ({"transmittance_exponent": 1.5}, r"transmittance_exponent \(gamma\) must be in \[0, 1\], got 1.5"),
        ({"max_step": 0.01}, r"max_step \(dt_max\) must be 0 .* or at least step = 0.05, got 0.01"),
        ({"max_step": math.nan}, r"max_step \(dt_max\) must be 0"),
    ],
)
def test_senseless_settings(change, message, scene, rays, cast_scene):
    with pytest.raises(ValueError, match=message):
        cast_scene(scene, rays, UNIFORM._replace(**change))
