"""The Numba kernels (float32) against the reference (float64), early stop off: strict away from discontinuities."""

import pytest
import torch

from raygauss_ns.casting import CastSettings

OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
SIZES = {1: (1, 1), 63: (7, 9), 100: (10, 10)}  # rays: width and height of the image


def settings(offset=0.5, **changes):
    return CastSettings(step=0.05, density_threshold=0.02, sample_offset=offset, transmittance_threshold=0.0)._replace(
        **changes
    )


@pytest.fixture(scope="module")
def reference_cases(random_scene, image_rays, differentiate, touches_border):
    """`reference_cases(rays, n)`: scene, rays, cotangent, what the reference makes of them; computed once each.

    The cotangent is zero on the rays that touch a border, which leaves them out of the gradients.
    """
    known = {}

    def make(rays, n, offset=0.5):
        key = rays, n, offset
        if key not in known:
            scene, image = random_scene(n), image_rays(*SIZES[rays])
            border = touches_border(scene, image, settings(offset))
            assert border.double().mean() < 0.3, "too few rays are left to compare"
            cotangent = torch.randn(rays, 5, generator=torch.Generator().manual_seed(7))
            cotangent[border] = 0
            expected = differentiate(scene, image, settings(offset), cotangent, "reference")
            known[key] = scene, image, cotangent, border, expected
        return known[key]

    return make


@pytest.mark.parametrize("order", ["packets", "shuffled"])
@pytest.mark.parametrize(
    ("rays", "n", "offset"),
    [(rays, n, 0.5) for rays in SIZES for n in (0, 1, 1000) if rays < 100 or n < 1000]
    + [(63, 100, 0.0), pytest.param(100, 1000, 0.5, marks=pytest.mark.slow)],
)
def test_agrees_with_the_reference(rays, n, order, offset, reference_cases, differentiate, gradient_errors):
    scene, image, cotangent, border, expected = reference_cases(rays, n, offset)
    outputs = expected.outputs
    width = SIZES[rays][0]
    if order == "shuffled":
        width = 0
        shuffle = torch.randperm(rays, generator=torch.Generator().manual_seed(3))
        image, cotangent = image.apply(lambda tensor: tensor[shuffle]), cotangent[shuffle]
        outputs, border = outputs[shuffle], border[shuffle]
    result = differentiate(scene, image, settings(offset), cotangent, image_width=width)
    error = (result.outputs - outputs).abs().amax(-1)
    assert bool((error[~border] < OUTPUT_TOLERANCE).all()), f"largest error {float(error[~border].max()):.2e}"
    # A flip at a border changes sigma dt by eps dt; depth counts it once per unit of length.
    assert bool((error < 6 * 3 * 0.02 * 0.05).all())
    for name, gradient_error in gradient_errors(result.gradients, expected.gradients).items():
        assert gradient_error.below(GRADIENT_TOLERANCE), f"{name}: {gradient_error}"
    if n == 1000:
        assert outputs[:, 3].max() < 0.9, "nothing was seen"


@pytest.mark.parametrize("width", [0, 6])
@pytest.mark.parametrize("channel", range(5))
def test_gradient_of_each_output(channel, width, random_scene, image_rays, differentiate, gradient_errors):
    scene, rays = random_scene(20, seed=3), image_rays(6, 6)
    cotangent = torch.zeros(36, 5)
    cotangent[:, channel] = 1
    # eps so small that the jump at the border is below the tolerance.
    small_eps = settings(density_threshold=1e-6)
    expected = differentiate(scene, rays, small_eps, cotangent, "reference").gradients
    actual = differentiate(scene, rays, small_eps, cotangent, image_width=width).gradients
    for name, error in gradient_errors(actual, expected).items():
        assert error.below(GRADIENT_TOLERANCE), f"{name}: {error}"


@pytest.mark.parametrize("width", [0, 6])
def test_thin_and_dense_gaussians(width, random_scene, image_rays, differentiate, gradient_errors):
    """Needles and sheets 100 times longer than thick, optical depths of a step from 1e-4 to 12."""
    scene, rays = random_scene(30, seed=5), image_rays(6, 6)
    scales = scene.scales.clone()
    scales[::3, 0] = 0.8
    scales[::3, 1:] = 0.02
    scales[1::3, 2] = 0.008
    scene = scene._replace(scales=scales, densities=torch.logspace(-2, 2.8, 30))
    cotangent = torch.randn(36, 5, generator=torch.Generator().manual_seed(1))
    fine = settings(step=0.02, density_threshold=1e-6)
    expected = differentiate(scene, rays, fine, cotangent, "reference")
    actual = differentiate(scene, rays, fine, cotangent, image_width=width)
    torch.testing.assert_close(actual.outputs, expected.outputs, rtol=0, atol=2e-5)
    for name, error in gradient_errors(actual.gradients, expected.gradients).items():
        assert error.below(5 * GRADIENT_TOLERANCE), f"{name}: {error}"


@pytest.mark.parametrize("width", [0, 4])
def test_more_gaussians_in_a_slab_than_the_list_of_hits_holds(
    width, random_scene, image_rays, differentiate, gradient_errors
):
    count = 2000
    generator = torch.Generator().manual_seed(0)
    scene = random_scene(1, seed=1).apply(lambda tensor: tensor.expand(count, *tensor.shape[1:]).clone())
    scene = scene._replace(
        means=torch.zeros(count, 3),
        scales=torch.full((count, 3), 0.3),
        densities=1e-3 * (1 + torch.rand(count, generator=generator)),
        colors=torch.rand(count, 3, generator=generator),
    )
    rays = image_rays(4, 3)
    tiny_eps = settings(density_threshold=1e-7)
    cotangent = torch.randn(12, 5, generator=generator)
    expected = differentiate(scene, rays, tiny_eps, cotangent, "reference")
    assert expected.outputs[:, 3].min() < 0.5
    actual = differentiate(scene, rays, tiny_eps, cotangent, image_width=width)
    torch.testing.assert_close(actual.outputs, expected.outputs, rtol=0, atol=OUTPUT_TOLERANCE)
    for name, error in gradient_errors(actual.gradients, expected.gradients).items():
        if name != "quats":  # of a sphere: zero but for rounding
            assert error.below(GRADIENT_TOLERANCE), f"{name}: {error}"


def test_float64_inputs_are_cast_in_float32(random_scene, image_rays, differentiate, gradient_errors):
    scene, rays, cotangent = random_scene(20), image_rays(4, 4), torch.ones(16, 5)
    expected = differentiate(scene, rays, settings(), cotangent)
    actual = differentiate(scene, rays, settings(), cotangent, dtype=torch.float64)
    torch.testing.assert_close(actual.outputs, expected.outputs, rtol=0, atol=OUTPUT_TOLERANCE)
    for name, error in gradient_errors(actual.gradients, expected.gradients).items():
        assert error.below(GRADIENT_TOLERANCE), f"{name}: {error}"
