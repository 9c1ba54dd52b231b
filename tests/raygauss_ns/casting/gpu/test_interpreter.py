"""The Triton kernels in Triton's interpreter, on the CPU, against the reference in float64."""

import pytest
import torch

from raygauss_ns.casting import CastSettings

pytest.importorskip("triton")

pytestmark = pytest.mark.interpreted
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
SETTINGS = CastSettings(
    step=0.08, density_threshold=0.02, sample_offset=0.5, transmittance_threshold=0.0, samples_per_slab=8
)


def first(rays, count):
    return rays.apply(lambda tensor: tensor[:count])


@pytest.mark.parametrize("n", [0, 1, 40])
def test_one_ray(n, image_rays, agree):
    rays = image_rays(1, 1)
    rays = rays._replace(
        directions=torch.nn.functional.normalize(rays.directions + torch.tensor([0.1, 0.05, 0]), dim=-1)
    )
    agree(n, rays, 1)


@pytest.mark.parametrize("n", [1, 12, pytest.param(40, marks=pytest.mark.slow)])
def test_31_rays_of_no_order(n, image_rays, agree):
    agree(n, first(image_rays(8, 4), 31), 0)


@pytest.mark.parametrize(
    ("slab", "step"), [(8, 0.16)] + [pytest.param(slab, 0.08, marks=pytest.mark.slow) for slab in (4, 8, 32)]
)
def test_an_image_whose_tiles_overhang(slab, step, image_rays, agree):
    expected = agree(40, image_rays(5, 7), 5, SETTINGS._replace(samples_per_slab=slab, step=step))
    assert expected.outputs[:, 3].min() < 0.5, "too little was seen"


@pytest.mark.parametrize("n", [12, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("width", [8, 0])
def test_64_rays(width, n, image_rays, agree):
    shuffle = torch.arange(64) if width else torch.randperm(64, generator=torch.Generator().manual_seed(3))
    agree(n, image_rays(8, 8).apply(lambda tensor: tensor[shuffle]), width, SETTINGS._replace(step=0.12))


@pytest.mark.parametrize("n", [12, pytest.param(40, marks=pytest.mark.slow)])
def test_incoherent_rays(n, image_rays, agree):
    """Rays from all sides, some of which begin inside the scene, miss it, or are empty."""
    generator = torch.Generator().manual_seed(1)
    origins = torch.nn.functional.normalize(torch.randn(40, 3, generator=generator), dim=-1)
    origins *= 4 * torch.rand(40, 1, generator=generator)
    targets = torch.rand(40, 3, generator=generator) - 0.5
    nears = torch.rand(40, generator=generator)
    fars = nears + 5 * torch.rand(40, generator=generator)
    rays = image_rays(8, 5)._replace(
        origins=origins,
        directions=torch.nn.functional.normalize(targets - origins, dim=-1),
        nears=nears,
        fars=fars,
    )
    rays.fars[3], rays.fars[5] = -1.0, rays.nears[5]
    agree(n, rays, 0, SETTINGS._replace(step=0.12))


def test_axis_parallel_rays_and_dead_gaussians(random_scene, image_rays, agree):
    """Directions with zeros, also from a plane of a box; Gaussians below the threshold or not finite."""
    scene = random_scene(6)
    scene.densities[1], scene.densities[4] = 0.01, 0.0
    scene = scene._replace(means=scene.means * 0.5)
    directions = torch.eye(3).repeat(3, 1)[:8]
    rays = image_rays(8, 1)._replace(directions=directions, origins=-3 * directions + scene.means[0].clone())
    agree(6, rays, 8, scene=scene)


def test_not_finite_means_absent(random_scene, image_rays, differentiate):
    scene, rays, cotangent = random_scene(5), image_rays(2, 2), torch.ones(4, 5)
    changed = scene.apply(torch.Tensor.clone)
    changed.means[0, 1], changed.colors[1, 2], changed.scales[2, 0] = torch.nan, torch.inf, 0.0
    actual = differentiate(changed, rays, SETTINGS, cotangent, "gpu", 2)
    expected = differentiate(scene.apply(lambda tensor: tensor[3:]), rays, SETTINGS, cotangent, "reference")
    torch.testing.assert_close(actual.outputs, expected.outputs, rtol=0, atol=OUTPUT_TOLERANCE)
    for name, gradient in actual.gradients.items():
        assert not gradient[:3].any()
        torch.testing.assert_close(gradient[3:], expected.gradients[name], rtol=1e-4, atol=1e-5)


GROWTHS = {
    "with distance": {"step_growth": 0.03},
    "with distance, bounded": {"step_growth": 0.03, "max_step": 0.15, "sample_offset": 0.0},
    "with both": {"step_growth": 0.02, "transmittance_exponent": 1 / 3, "max_step": 0.3},
}


@pytest.mark.parametrize(
    ("growth", "width"),
    [("with distance", 5), ("with both", 0)]
    + [
        pytest.param(growth, width, marks=pytest.mark.slow)
        for growth, width in (("with distance", 0), ("with distance, bounded", 5), ("with both", 5))
    ],
)
def test_a_growing_step(growth, width, random_scene, image_rays, differentiate, gradient_errors):
    """Every ray with ends of its own, one of them empty; behind the scene a gap and another Gaussian."""
    scene, rays = random_scene(8), image_rays(5, 3)
    scene.means[-1] = torch.tensor([0.5, -0.2, 30.0])
    scene.scales[-1] = 3.0
    generator = torch.Generator().manual_seed(5)
    rays = rays._replace(nears=2.5 * torch.rand(15, generator=generator), fars=torch.full((15,), torch.inf))
    rays.fars[2], rays.fars[4], rays.nears[7] = 3.1, -1.0, 3.0
    settings = SETTINGS._replace(density_threshold=1e-6, samples_per_slab=16, **GROWTHS[growth])
    cotangent = torch.randn(15, 5, generator=generator) * torch.tensor([1, 1, 1, 1, 0.03])
    expected = differentiate(scene, rays, settings, cotangent, "reference")
    actual = differentiate(scene, rays, settings, cotangent, "gpu", width)
    scale = torch.tensor([1.0, 1, 1, 1, 30])
    torch.testing.assert_close(actual.outputs / scale, expected.outputs / scale, rtol=0, atol=2 * OUTPUT_TOLERANCE)
    for name, gradient_error in gradient_errors(actual.gradients, expected.gradients).items():
        assert gradient_error.below(2 * GRADIENT_TOLERANCE), f"{name}: {gradient_error}"
    assert expected.outputs[:, 3].min() < 0.3, "too little was seen"
    assert expected.outputs[:, 4].max() > 10, "nothing behind the gap was seen"


def test_a_growing_step_and_early_stop(random_scene, image_rays, differentiate, gradient_errors):
    """Dense Gaussians: transmittances differ within the packet, and so do steps; rays stop."""
    scene, rays = random_scene(8), image_rays(4, 2)
    scene = scene._replace(densities=40 * scene.densities)
    settings = SETTINGS._replace(density_threshold=1e-6, samples_per_slab=16, transmittance_threshold=0.02)
    settings = settings._replace(**GROWTHS["with both"])
    cotangent = torch.randn(8, 5, generator=torch.Generator().manual_seed(6))
    expected = differentiate(scene, rays, settings, cotangent, "reference")
    actual = differentiate(scene, rays, settings, cotangent, "gpu", 4)
    assert 0 < int((expected.outputs[:, 3] <= 0.02).sum()) < 8
    torch.testing.assert_close(actual.outputs, expected.outputs, rtol=0, atol=2 * OUTPUT_TOLERANCE)
    for name, gradient_error in gradient_errors(actual.gradients, expected.gradients).items():
        assert gradient_error.below(2 * GRADIENT_TOLERANCE), f"{name}: {gradient_error}"


def test_early_stop_leaves_the_threshold_at_most(random_scene, image_rays, cast_scene):
    scene, rays = random_scene(20), image_rays(4, 2)
    scene = scene._replace(densities=20 * scene.densities)
    complete = cast_scene(scene, rays, SETTINGS, "reference")
    stopped = cast_scene(scene, rays, SETTINGS._replace(transmittance_threshold=0.05), "gpu", 4)
    assert complete[:, 3].min() < 1e-3
    assert bool((stopped[:, 3] >= complete[:, 3] - 1e-6).all())
    assert bool(((stopped[:, :3] - complete[:, :3]).abs() <= 0.05 + 1e-5).all())
    assert stopped[:, 3].max() > 0.05 or not torch.equal(stopped, complete)


def test_far_from_the_origin(random_scene, image_rays, agree):
    """Scene and camera at 32, where float32 resolves 4e-6."""
    shift = torch.tensor([32.0, -16.0, 8.0])
    scene = random_scene(6)
    scene = scene._replace(means=(scene.means + shift).float())
    rays = image_rays(4, 2)
    agree(6, rays._replace(origins=rays.origins + shift), 4, scene=scene)


@pytest.mark.slow
def test_thin_and_dense_gaussians(random_scene, image_rays, agree):
    """Needles and sheets 100 times longer than thick, optical depths of a step from 1e-4 to 12."""
    scene = random_scene(30, seed=5)
    scales = scene.scales.clone()
    scales[::3, 0] = 0.8
    scales[::3, 1:] = 0.02
    scales[1::3, 2] = 0.008
    scene = scene._replace(scales=scales, densities=torch.logspace(-2, 2.8, 30))
    settings = SETTINGS._replace(step=0.02, density_threshold=1e-6)
    agree(30, image_rays(6, 3), 6, settings, scene, 5 * GRADIENT_TOLERANCE)


def test_rays_without_end_and_rays_that_begin_at_infinity(random_scene, image_rays, cast_scene):
    scene, rays = random_scene(4), image_rays(3, 1)
    rays.fars[:] = torch.inf
    rays.nears[1] = torch.inf
    outputs = cast_scene(scene, rays, SETTINGS, "gpu", 3)
    expected = cast_scene(scene.apply(torch.Tensor.double), rays.apply(torch.Tensor.double), SETTINGS, "reference")
    torch.testing.assert_close(outputs.double(), expected, rtol=0, atol=OUTPUT_TOLERANCE)
    assert outputs[1].tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("growth", [{}, {"step_growth": 0.02}])
def test_a_direction_that_is_not_of_unit_length_shows(growth, random_scene, image_rays, differentiate):
    """Its ray is NaN; the gradients are those of the other rays, whatever arrives for this one."""
    scene, rays, settings = random_scene(12), image_rays(5, 1), SETTINGS._replace(step=0.4, **growth)
    directions, cotangent = rays.directions.clone(), torch.ones(5, 5)
    directions[0] *= 1.1
    cotangent[0] = torch.nan
    found = differentiate(scene, rays._replace(directions=directions), settings, cotangent, "gpu", 5)
    alone = differentiate(scene, rays.apply(lambda tensor: tensor[1:]), settings, cotangent[1:], "gpu", 4)
    assert found.outputs[0].isnan().all()
    assert alone.gradients["colors"].any()
    torch.testing.assert_close(found.outputs[1:], alone.outputs, rtol=0, atol=OUTPUT_TOLERANCE)
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, alone.gradients[name], rtol=1e-4, atol=1e-5)


def test_nothing_alive(random_scene, image_rays, differentiate):
    scene = random_scene(3)._replace(densities=torch.zeros(3))
    result = differentiate(scene, image_rays(2, 2), SETTINGS, torch.ones(4, 5), "gpu", 2)
    assert torch.equal(result.outputs, torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]).double().repeat(4, 1))
    assert not any(bool(gradient.any()) for gradient in result.gradients.values())
