"""Images of every kind of camera against the reference caster in float64, along rays computed independently."""

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from scipy.spatial.transform import Rotation

from ns_support.concurrency.processes import Processes
from ns_support.rays import camera_rays
from raygauss_ns.cameras import camera_view, flat_rays, posed_lenses
from raygauss_ns.casting.reference import cast_reference
from raygauss_ns.casting.types import Rays, WhitenedGaussians, sample_counts, whitening_matrices
from raygauss_ns.color.reference import ColorBasis, colors_reference
from raygauss_ns.gaussians.renderer import image_rays

WIDTH, HEIGHT = 21, 15
OPENCV = (0.1, -0.05, 0.01, -0.002, 0.002, -0.003)
FISHEYE = (0.05, -0.01, 0.002, -0.0005, 0.002, -0.003)
ARIA = (0.03, -0.01, 0.002, 0.001, -0.0003, 0.0001, 0.0008, -0.0005, 0.001, -0.0002, 0.0007, 0.0003)
CAMERAS = [
    (CameraType.PERSPECTIVE, None, 3.0),
    (CameraType.PERSPECTIVE, OPENCV, 3.0),
    (CameraType.FISHEYE, None, 1.2),
    (CameraType.FISHEYE, FISHEYE, 1.2),
    (CameraType.FISHEYE624, ARIA, 1.2),
    (CameraType.EQUIRECTANGULAR, None, 0.3),
    (CameraType.OMNIDIRECTIONALSTEREO_L, None, 0.3),
    (CameraType.OMNIDIRECTIONALSTEREO_R, None, 0.3),
    (CameraType.VR180_L, None, 0.3),
    (CameraType.VR180_R, None, 0.3),
    (CameraType.ORTHOPHOTO, None, 3.0),
]
"""Kind, distortion, and how far from the scene's middle."""


def make_camera(kind, distortion, away):
    focal = {CameraType.PERSPECTIVE: 18.0, CameraType.ORTHOPHOTO: 8.0}.get(kind, 7.0)
    fx = fy = focal
    if CameraType.EQUIRECTANGULAR.value <= kind.value <= CameraType.VR180_R.value:
        fx, fy = WIDTH / 2, float(HEIGHT)
    rotation = torch.from_numpy(Rotation.from_euler("xyz", (0.4, -0.6, 0.2)).as_matrix()).float()
    pose = torch.cat([rotation, away * rotation[:, 2:]], 1)
    coefficients = None if distortion is None else torch.tensor([distortion])
    center = (WIDTH / 2, HEIGHT / 2)
    return Cameras(pose[None], fx, fy, *center, WIDTH, HEIGHT, distortion_params=coefficients, camera_type=kind)


def reference_pixel(model, origin, direction, parallel):
    """Colour and transmittance of one ray in float64."""
    gaussians = model.cloud.gaussians()
    basis = ColorBasis(*(tensor.double() for tensor in model.cloud.color_basis()))
    means, densities = gaussians.means.double(), gaussians.densities.double()
    whitenings = whitening_matrices(gaussians.scales.double(), gaussians.quats.double())
    views = direction if parallel else torch.nn.functional.normalize(means - origin, dim=-1)
    colors = colors_reference(basis, views)
    near = torch.full((1,), model.config.near_plane * model.unit, dtype=torch.float64)
    settings = model.cast_settings
    counts = sample_counts(near, torch.full_like(near, torch.inf), settings)
    rays = Rays(origin[None], direction[None], near, torch.full_like(near, torch.inf))
    out = cast_reference(WhitenedGaussians(means, whitenings, densities, colors), rays, counts, settings)
    return out.rgb[0], out.transmittance[0]


@pytest.fixture
def colourful(make_model):
    """A model of 60 Gaussians whose colours depend on the direction."""
    model = make_model(num_random=60, step_size=0.03, initial_scale=2.0, sh_degree_interval=0).eval()
    torch.manual_seed(2)
    for name in ("sh_rest", "sg_amplitudes"):
        torch.nn.init.normal_(model.cloud.params[name], std=0.3)
    return model


@pytest.mark.parametrize("every", [4, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "distortion", "away"), CAMERAS)
@torch.no_grad()
def test_images_are_those_of_the_reference(colourful, expected_ray, kind, distortion, away, every):
    model = colourful
    camera = make_camera(kind, distortion, away)
    outputs = model.get_outputs_for_camera(camera)
    image, accumulation = outputs["rgb"].double(), outputs["accumulation"].double()
    assert image.shape == (HEIGHT, WIDTH, 3)
    hit, worst = 0, 0.0
    for row in range(0, HEIGHT, every):
        for column in range(row % (2 * every), WIDTH, 2 * every):
            origin, direction = (torch.from_numpy(v) for v in expected_ray(camera, row, column))
            rgb, transmittance = reference_pixel(model, origin, direction, kind is CameraType.ORTHOPHOTO)
            expected = (rgb + transmittance * outputs["background"][row, column].double()).clamp(0, 1)
            worst = max(worst, float((image[row, column] - expected).abs().max()))
            worst = max(worst, float((accumulation[row, column, 0] - (1 - transmittance)).abs()))
            hit += bool(transmittance < 0.9)
    print(f"{kind.name}: {worst:.1e}")
    assert hit >= 16 // every
    assert worst < 1e-5


@pytest.mark.parametrize(("kind", "distortion", "away"), CAMERAS)
def test_a_training_step_sees_every_camera(make_model, kind, distortion, away):
    """Gradients are finite, and density control counts the Gaussians in the window and not those beside it."""
    model = make_model(num_random=300, training_window=11, densify_by_distance=True).train()
    camera = make_camera(kind, distortion, away)
    outputs = model.get_outputs(camera)
    assert outputs["rgb"].shape == (11, 11, 3)
    outputs["rgb"].square().sum().backward()
    assert model.cloud.params["means"].grad.isfinite().all()
    control = model.density_control
    control.add_observed(Processes())
    assert control.gradient_sum.isfinite().all()
    counted, touched = control.times_seen > 0, control.gradient_sum > 0
    beside = camera_view(camera, tuple(outputs["window"].tolist())).misses(model.cloud.params["means"])
    assert beside.any()
    assert torch.equal(counted, touched & ~beside)
    assert counted.any()


def test_a_camera_without_rays_at_its_rim_shows_the_background_there(make_model):
    model = make_model().eval()
    camera = make_camera(CameraType.FISHEYE, None, 3.0)
    camera.fx = camera.fy = torch.full_like(camera.fx, 2.0)
    outputs = model.get_outputs_for_camera(camera)
    assert outputs["accumulation"][0, 0].item() == 0.0
    assert outputs["rgb"][0, 0].equal(outputs["background"][0, 0])
    assert outputs["rgb"].isfinite().all()
    assert outputs["accumulation"].max() > 0.5


@pytest.mark.parametrize(("kind", "distortion", "away"), CAMERAS)
def test_rays_without_nerfstudio_are_those_of_its_cameras(kind, distortion, away):
    camera = make_camera(kind, distortion, away)
    _, (lens,) = posed_lenses(camera, torch.device("cpu"))
    expected = flat_rays(camera_rays(camera), near=0.1)
    rays = image_rays(lens, camera.camera_to_worlds.reshape(3, 4), near=0.1)
    exist = rays.fars > rays.nears
    assert torch.equal(exist, expected.fars > expected.nears)
    assert rays.image_width == expected.image_width
    # A pinhole's are computed in single precision there.
    torch.testing.assert_close(rays.directions[exist], expected.directions[exist], rtol=0, atol=2e-7)
    torch.testing.assert_close(rays.origins[exist], expected.origins[exist], rtol=0, atol=2e-7)
    assert bool((rays.nears[exist] == 0.1).all())
