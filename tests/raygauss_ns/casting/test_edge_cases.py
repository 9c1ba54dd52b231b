"""Extreme Gaussians, rays and inputs, on both back ends: finite outputs and gradients, or one clear error."""

import pytest
import torch

from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast

SETTINGS = CastSettings(step=0.05, density_threshold=0.125, sample_offset=0.5, transmittance_threshold=1e-4)
NAN, INF = float("nan"), float("inf")


def with_row(tensor, row, value):
    changed = tensor.clone()
    changed[row] = torch.as_tensor(value, dtype=tensor.dtype)
    return changed


# What becomes of the first Gaussian of a scene; the others stay as they are.
ABSENT = {
    "density below eps": {"densities": 0.1},
    "density exactly eps": {"densities": 0.125},
    "density zero": {"densities": 0.0},
    "negative density": {"densities": -3.0},
    "density nan": {"densities": NAN},
    "density infinite": {"densities": INF},
    "mean nan": {"means": [NAN, 0, 0]},
    "mean infinite": {"means": [0, -INF, 0]},
    "scale nan": {"scales": [0.1, NAN, 0.1]},
    "scale infinite": {"scales": [0.1, 0.1, INF]},
    "scale zero": {"scales": [0.1, 0.0, 0.1]},
    "quaternion nan": {"quats": [1, 0, NAN, 0]},
    "color nan": {"colors": [0.5, NAN, 0.5]},
    "color infinite": {"colors": [INF, 0.5, 0.5]},
    "behind the camera": {"means": [0, 0, -8.0], "scales": [0.1, 0.1, 0.1]},
    "beyond the far end": {"means": [0, 0, 9.0], "scales": [0.1, 0.1, 0.1]},
    "between two rays": {"means": [0, 0, 0], "scales": [1e-6, 1e-6, 1e-6]},
}
PRESENT = {
    "thin sheet": {"means": [0, 0, 0], "scales": [0.5, 0.5, 1e-2]},
    "invisibly thin sheet": {"means": [0, 0, 0], "scales": [0.5, 0.5, 1e-6]},
    "needle": {"means": [0, 0, 0], "scales": [0.3, 1e-6, 1e-6]},
    "huge": {"scales": [1e3, 1e3, 1e3], "densities": 0.3},
    "huge sheet": {"scales": [1e3, 1e3, 1e-3], "densities": 5.0},
    "opaque": {"means": [0, 0, 0], "scales": [0.3, 0.3, 0.3], "densities": 1e6},
    "long quaternion": {"quats": [30.0, 10.0, -20.0, 5.0]},
    "short quaternion": {"quats": [3e-4, 1e-4, -2e-4, 5e-5]},
    "negative color": {"colors": [-2.0, 0.5, 7.0]},
    "just above eps": {"densities": 0.1250001},
}


@pytest.mark.parametrize(("backend", "width"), [("cpu", 0), ("cpu", 5), ("reference", 0)])
@pytest.mark.parametrize("case", list(ABSENT) + list(PRESENT))
def test_one_extreme_gaussian(case, backend, width, random_scene, image_rays, differentiate):
    scene, rays, cotangent = random_scene(6, seed=2), image_rays(5, 5), torch.ones(25, 5)
    changes = {**ABSENT, **PRESENT}[case]
    extreme = scene._replace(**{name: with_row(getattr(scene, name), 0, value) for name, value in changes.items()})
    result = differentiate(extreme, rays, SETTINGS, cotangent, backend, width, dtype=torch.float32)
    assert result.finite
    assert float(result.outputs[:, 3].min()) >= 0
    assert float(result.outputs[:, 3].max()) <= 1
    if case in ABSENT:
        without = differentiate(scene.apply(lambda t: t[1:]), rays, SETTINGS, cotangent, backend, width, torch.float32)
        torch.testing.assert_close(result.outputs, without.outputs, rtol=0, atol=1e-6)
        for name, gradient in result.gradients.items():
            assert bool((gradient[0] == 0).all()), name
            torch.testing.assert_close(gradient[1:], without.gradients[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["thin sheet", "huge", "huge sheet", "opaque", "long quaternion", "short quaternion"])
@pytest.mark.parametrize("width", [0, 5])
def test_extreme_gaussians_look_the_same_to_both(case, width, random_scene, image_rays, cast_scene):
    scene, rays = random_scene(6, seed=2), image_rays(5, 5)
    extreme = scene._replace(**{k: with_row(getattr(scene, k), 0, value) for k, value in PRESENT[case].items()})
    double, double_rays = extreme.apply(torch.Tensor.double), rays.apply(torch.Tensor.double)
    expected = cast_scene(double, double_rays, SETTINGS, "reference").float()
    actual = cast_scene(extreme, rays, SETTINGS, image_width=width)
    # 0.125 * 0.05 for a sample on either side of a border
    assert (actual - expected).abs().max() < 5e-5 + 3 * 0.125 * 0.05
    assert (actual - expected).abs().median() < 1e-5


RAYS = {
    "starts inside a Gaussian": ([0.0, 0.0, 0.0], [0.0, 0.6, 0.8]),
    "starts at the very mean": ([0.25, 0.25, 0.25], [0.6, 0.0, 0.8]),
    "misses everything": ([0.0, 0.0, -3.0], [0.0, 0.0, -1.0]),
    "passes beside everything": ([30.0, 0.0, -3.0], [0.0, 0.0, 1.0]),
    "one zero component": ([0.0, 0.0, -3.0], [0.0, 0.28, 0.96]),
    "two zero components": ([0.1, 0.2, -3.0], [0.0, 0.0, 1.0]),
    "negative zeros": ([0.1, 3.0, 0.2], [-0.0, -1.0, -0.0]),
    "nearly zero component": ([0.1, 0.2, -3.0], [1e-30, 1e-12, 1.0]),
    "far away": ([0.0, 0.0, -1e4], [0.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("width", [0, 2])
@pytest.mark.parametrize("case", list(RAYS))
def test_one_extreme_ray(case, width, random_scene, image_rays, differentiate):
    origin, direction = (torch.tensor([value, value]) for value in RAYS[case])
    scene = random_scene(6, seed=2)
    scene = scene._replace(
        means=with_row(scene.means, 0, [0.25, 0.25, 0.25]), scales=with_row(scene.scales, 0, [0.5, 0.4, 0.3])
    )
    rays = image_rays(2, 1)._replace(
        origins=origin, directions=direction, nears=torch.zeros(2), fars=torch.full((2,), INF)
    )
    cotangent = torch.ones(2, 5)
    small_eps = SETTINGS._replace(density_threshold=1e-6)
    expected = differentiate(scene, rays, small_eps, cotangent, "reference")
    actual = differentiate(scene, rays, small_eps, cotangent, image_width=width)
    assert expected.finite
    assert actual.finite
    if case == "far away":  # float32 knows a sample's place there to 1e-3, and its depth to as many digits as ever
        torch.testing.assert_close(actual.outputs, expected.outputs, rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(actual.outputs, expected.outputs, rtol=1e-5, atol=1e-5)
    missed = bool((expected.outputs[:, 3] == 1).all())
    assert missed == (case in ("misses everything", "passes beside everything"))
    if missed:
        assert all(bool((gradient == 0).all()) for gradient in actual.gradients.values())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_identical_gaussians_share_the_gradient(backend, random_scene, image_rays, differentiate):
    scene = random_scene(1, seed=2).apply(lambda tensor: tensor.expand(9, *tensor.shape[1:]).clone())
    scene = scene._replace(means=torch.zeros(9, 3))
    result = differentiate(scene, image_rays(5, 5), SETTINGS, torch.ones(25, 5), backend)
    assert result.finite
    for gradient in result.gradients.values():
        torch.testing.assert_close(gradient, gradient[:1].expand_as(gradient))
    assert float(result.gradients["densities"].abs().max()) > 0


def bad_inputs():
    """Name, what to change of the arguments of a sound call, and what the message must say."""
    settings = [
        ("step", 0.0, r"step \(dt\) must be positive, got 0"),
        ("step", -1.0, r"step \(dt\) must be positive, got -1"),
        ("step", NAN, r"step \(dt\) must be positive, got nan"),
        ("density_threshold", 0.0, r"density_threshold \(eps\) must be positive, got 0"),
        ("sample_offset", 1.0, r"sample_offset must be in \[0, 1\), got 1"),
        ("sample_offset", -0.1, r"sample_offset must be in \[0, 1\), got -0.1"),
        ("transmittance_threshold", 1.0, r"transmittance_threshold must be in \[0, 1\), got 1"),
        ("transmittance_threshold", -1e-3, r"transmittance_threshold must be in \[0, 1\), got -0.001"),
        ("samples_per_slab", 0, r"samples_per_slab \(K\) must be at least 1, got 0"),
    ]
    for name, value, message in settings:
        yield pytest.param("settings", SETTINGS._replace(**{name: value}), message, id=f"{name}={value}")
    shapes = [
        ("means", (4, 2), r"means must be \[N, 3\] with N=4, got \[4, 2\]"),
        ("scales", (3, 3), r"scales must be \[N, 3\] with N=4, got \[3, 3\]"),
        ("quats", (4, 3), r"quats must be \[N, 4\] with N=4, got \[4, 3\]"),
        ("densities", (4, 1), r"densities must be \[N\] with N=4, got \[4, 1\]"),
        ("colors", (5, 3), r"colors must be \[N, 3\] with N=4, got \[5, 3\]"),
        ("origins", (6, 2), r"origins must be \[R, 3\] with R=6, got \[6, 2\]"),
        ("directions", (3,), r"directions must be \[R, 3\] with R=6, got \[3\]"),
        ("nears", (6, 1), r"nears must be \[R\] with R=6, got \[6, 1\]"),
        ("fars", (5,), r"fars must be \[R\] with R=6, got \[5\]"),
    ]
    for name, shape, message in shapes:
        yield pytest.param(name, torch.ones(shape), message, id=f"{name} {list(shape)}")
    yield pytest.param("nears", torch.ones(6, dtype=torch.int64), "nears must be floating point", id="integers")
    yield pytest.param("directions", torch.full((6, 3), 0.6), "unit length, got one of length 1.039", id="length")
    yield pytest.param("directions", torch.full((6, 3), NAN), "unit length, got one of length nan", id="length nan")
    yield pytest.param("image_width", 4, "image_width must divide .* image_width=4 with R=6", id="width 4")
    yield pytest.param("image_width", -1, "image_width must divide .* image_width=-1 with R=6", id="width -1")
    yield pytest.param("backend", "cuda", "backend must be one of .*, got 'cuda'", id="backend")


@pytest.mark.parametrize(("name", "value", "message"), list(bad_inputs()))
def test_bad_input_is_named(name, value, message, random_scene, image_rays):
    call = {**random_scene(4)._asdict(), **image_rays(3, 2)._asdict(), "settings": SETTINGS, "image_width": 3}
    call |= {"backend": "reference", name: value}
    with pytest.raises(ValueError, match=message):
        _cast(**call)


def _cast(image_width, **call):
    gaussians = Gaussians(*(call.pop(name) for name in Gaussians._fields))
    rays = Rays(*(call.pop(name) for name in ("origins", "directions", "nears", "fars")), image_width)
    return cast(gaussians, rays=rays, **call)
