"""How rays are marched: their ends, their order, slabs and early stop must not show beyond what is stated."""

import pytest
import torch

from raygauss_ns.casting import CastSettings

SETTINGS = CastSettings(step=0.05, density_threshold=1e-6, sample_offset=0.5, transmittance_threshold=0.0)
WIDTH, HEIGHT = 10, 7
EMPTY = torch.tensor([0.0, 0, 0, 1, 0])


@pytest.fixture(scope="module")
def scene(random_scene):
    return random_scene(40, seed=6)


@pytest.fixture(scope="module")
def rays(image_rays):
    return image_rays(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def cotangent():
    return torch.randn(WIDTH * HEIGHT, 5, generator=torch.Generator().manual_seed(2))


def assert_small(errors, tolerance):
    for name, error in errors.items():
        assert error.below(tolerance), f"{name}: {error}"


@pytest.mark.parametrize("width", [0, WIDTH])
@pytest.mark.parametrize("samples", [1, 8, 16, 33, 64])
def test_slab_size_has_no_influence(samples, width, scene, rays, cotangent, differentiate, gradient_errors):
    expected = differentiate(scene, rays, SETTINGS, cotangent, image_width=width)  # 32
    changed = SETTINGS._replace(samples_per_slab=samples)
    actual = differentiate(scene, rays, changed, cotangent, image_width=width)
    torch.testing.assert_close(actual.outputs, expected.outputs, rtol=0, atol=3e-6)
    assert_small(gradient_errors(actual.gradients, expected.gradients), 1e-5)


@pytest.mark.parametrize("samples", [1, 7, 1000])
def test_slab_size_of_the_reference(samples, scene, rays, cast_scene):
    expected = cast_scene(scene, rays, SETTINGS, "reference")
    actual = cast_scene(scene, rays, SETTINGS._replace(samples_per_slab=samples), "reference")
    torch.testing.assert_close(actual, expected, rtol=0, atol=3e-6)


def test_order_has_no_influence(scene, rays, cotangent, differentiate, gradient_errors):
    shuffle = torch.randperm(WIDTH * HEIGHT, generator=torch.Generator().manual_seed(0))
    image = differentiate(scene, rays, SETTINGS, cotangent, image_width=WIDTH)
    plain = differentiate(scene, rays, SETTINGS, cotangent)
    shuffled = differentiate(scene, rays.apply(lambda t: t[shuffle]), SETTINGS, cotangent[shuffle])
    column = differentiate(scene, rays, SETTINGS, cotangent, image_width=1)
    row = differentiate(scene, rays, SETTINGS, cotangent, image_width=WIDTH * HEIGHT)
    assert torch.equal(shuffled.outputs, plain.outputs[shuffle])
    for other in (plain, column, row):
        torch.testing.assert_close(other.outputs, image.outputs, rtol=0, atol=3e-6)
    for other in (plain, shuffled, column, row):
        assert_small(gradient_errors(other.gradients, image.gradients), 1e-5)


@pytest.mark.parametrize("width", [0, WIDTH])
def test_every_ray_has_its_own_ends(width, scene, rays, cotangent, differentiate, gradient_errors):
    generator = torch.Generator().manual_seed(4)
    own = rays._replace(
        nears=2 + 1.5 * torch.rand(WIDTH * HEIGHT, generator=generator),
        fars=2.5 + 2 * torch.rand(WIDTH * HEIGHT, generator=generator),
    )
    own.fars[::7] = torch.inf
    expected = differentiate(scene, own, SETTINGS, cotangent, "reference")
    actual = differentiate(scene, own, SETTINGS, cotangent, image_width=width)
    torch.testing.assert_close(actual.outputs, expected.outputs, rtol=0, atol=1e-5)
    assert_small(gradient_errors(actual.gradients, expected.gradients), 1e-4)
    empty = own.nears >= own.fars
    assert 3 < int(empty.sum()) < 60
    assert bool((actual.outputs[empty] == EMPTY).all())
    assert bool((actual.outputs[~empty] != EMPTY).any(-1).double().mean() > 0.9)


@pytest.mark.parametrize("width", [WIDTH, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("samples", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_what_lies_behind_empty_space_is_found(samples, width, scene, rays, differentiate, gradient_errors):
    """Twice the scene, many slabs apart, and 30 small Gaussians strewn between: slabs without anything are skipped."""
    generator = torch.Generator().manual_seed(8)
    axis = rays.directions.mean(0)
    rays = rays._replace(fars=torch.full_like(rays.fars, torch.inf))
    gap = 1600 * SETTINGS.step
    strewn = scene.apply(lambda tensor: tensor[:30])
    strewn = strewn._replace(means=gap * torch.rand(30, 1, generator=generator) * axis, scales=0.2 * strewn.scales)
    behind = scene._replace(means=scene.means * gap / 10 + gap * axis, scales=scene.scales * gap / 10)
    both = type(scene)(*(torch.cat(parts) for parts in zip(scene, strewn, behind, strict=True)))
    thin = both._replace(densities=both.densities / 10)
    cotangent = torch.randn(WIDTH * HEIGHT, 5, generator=generator) * torch.tensor([1, 1, 1, 1, 1 / gap])
    settings = SETTINGS._replace(samples_per_slab=samples, density_threshold=1e-3)
    expected = differentiate(thin, rays, settings, cotangent, "reference")
    actual = differentiate(thin, rays, settings, cotangent, image_width=width)
    scale = torch.tensor([1, 1, 1, 1, gap])
    torch.testing.assert_close(actual.outputs / scale, expected.outputs / scale, rtol=0, atol=1e-5)
    assert_small(gradient_errors(actual.gradients, expected.gradients), 2e-4)
    assert actual.outputs[:, 4].max() > gap / 2, "nothing behind the gap was seen"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("near", "far"), [(3.0, 3.0), (3.0, 1.0), (0.0, -1.0), (torch.inf, torch.inf), (1.0, torch.nan)]
)
def test_empty_rays(near, far, backend, scene, rays, cotangent, differentiate):
    count = WIDTH * HEIGHT
    empty = rays._replace(nears=torch.full((count,), near), fars=torch.full((count,), far))
    result = differentiate(scene, empty, SETTINGS, cotangent, backend, WIDTH)
    assert torch.equal(result.outputs, EMPTY.double().expand(count, 5))
    assert all(bool((gradient == 0).all()) for gradient in result.gradients.values())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_infinite_far_end_is_one_behind_everything(backend, scene, rays, cast_scene):
    infinite = rays._replace(fars=torch.full_like(rays.fars, torch.inf))
    assert torch.equal(cast_scene(scene, infinite, SETTINGS, backend), cast_scene(scene, rays, SETTINGS, backend))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_ray_in_two_parts(backend, scene, rays, cast_scene):
    """Colour, transmittance and depth of the whole from those of the near and of the far part."""
    middle = torch.full_like(rays.nears, 3.0)  # a whole number of steps behind the near end
    front = cast_scene(scene, rays._replace(fars=middle), SETTINGS, backend, WIDTH)
    back = cast_scene(scene, rays._replace(nears=middle), SETTINGS, backend, WIDTH)
    seen_through = front[:, 3:4]
    composed = front + seen_through * back
    composed[:, 3] = front[:, 3] * back[:, 3]
    torch.testing.assert_close(composed, cast_scene(scene, rays, SETTINGS, backend, WIDTH), rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [0, WIDTH])
@pytest.mark.parametrize("threshold", [1e-2, 1e-4])
def test_early_stop(threshold, width, scene, rays, cotangent, differentiate, gradient_errors):
    dense = scene._replace(densities=8 * scene.densities)
    stopping = SETTINGS._replace(transmittance_threshold=threshold)
    exact = differentiate(dense, rays, SETTINGS, cotangent, "reference")
    expected = differentiate(dense, rays, stopping, cotangent, "reference")
    actual = differentiate(dense, rays, stopping, cotangent, image_width=width)
    # What is left out is worth at most T: to a colour below 1, to a depth below 6.
    bound = threshold * torch.tensor([1.0, 1, 1, 1, 6]) + 1e-5
    assert bool(((actual.outputs - exact.outputs).abs() <= bound).all())
    stopped = expected.outputs[:, 3] <= threshold
    assert 0.2 < float(stopped.double().mean()) < 1, "the test needs rays that stop and rays that do not"
    assert torch.equal(actual.outputs[:, 3] <= threshold, stopped)
    assert float((expected.outputs - exact.outputs).abs().max()) > threshold / 100, "nothing was left out"
    torch.testing.assert_close(actual.outputs, expected.outputs, rtol=0, atol=1e-5)
    assert_small(gradient_errors(actual.gradients, expected.gradients), 1e-4)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_sample_that_crosses_the_threshold_still_counts(backend, scene, image_rays, cast_scene):
    """One wall, opaque within a step: the first sample of it is complete and the second is not taken."""
    wall = scene.apply(lambda tensor: tensor[:1])._replace(
        means=torch.zeros(1, 3), scales=torch.full((1, 3), 100.0), densities=torch.full((1,), 100.0)
    )
    settings = SETTINGS._replace(transmittance_threshold=1e-2, density_threshold=0.1)
    outputs = cast_scene(wall, image_rays(2, 2), settings, backend)
    torch.testing.assert_close(outputs[:, 3], torch.full((4,), 0.00674), rtol=0.01, atol=0)  # e^-5
    first_sample = 0.5 + 0.025
    torch.testing.assert_close(outputs[:, 4], (1 - outputs[:, 3]) * first_sample)
