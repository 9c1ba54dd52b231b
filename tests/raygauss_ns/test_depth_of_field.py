"""A small Gaussian seen through a lens: its circle of confusion is as large as the formula says."""

import math

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from ns_support.commands.depth_of_field import LensOptions, linear_light, look_through

SIDE, APERTURE = 64, 0.25
FOCAL = {CameraType.PERSPECTIVE: 160.0, CameraType.FISHEYE: 160.0, CameraType.EQUIRECTANGULAR: 500.0}


@pytest.fixture
def small_gaussian(make_model):
    """`small_gaussian(z)`: a model of one Gaussian at the distance z of a camera in the origin."""

    def make(z):
        model = make_model(num_random=2, background_color="black", step_size=0.004).eval()
        params = model.cloud.params
        params["means"].data[:] = torch.tensor([[0.0, 0.0, -z], [0.0, 5.0, 0.0]])
        params["scales"].data[:] = math.log(0.008)
        params["densities"].data[:] = torch.tensor([20.0, 0.0]) * model.unit
        params["sh_base"].data[:] = 1.7  # white
        return model

    return make


def camera(kind):
    focal = FOCAL[kind]
    return Cameras(torch.eye(4)[None, :3], focal, focal, SIDE / 2, SIDE / 2, SIDE, SIDE, camera_type=kind)


def spread(image):
    """Variance of the linear light along the columns and along the rows (pixels squared)."""
    light = linear_light(image.double()).mean(-1)
    found = []
    for axis in (0, 1):
        profile = light.sum(axis)
        place = torch.arange(SIDE) + 0.5
        middle = (profile * place).sum() / profile.sum()
        found.append(float((profile * (place - middle) ** 2).sum() / profile.sum()))
    return found


@pytest.mark.parametrize("kind", FOCAL)
@pytest.mark.parametrize(("z", "focus"), [(2.0, 1.3), (2.0, 3.5), (1.4, 1.4)])
def test_the_circle_of_confusion_is_that_of_the_formula(small_gaussian, kind, z, focus):
    # A panorama's fx is half its width: pixels per half a turn.
    per_radian = FOCAL[kind] / (math.pi if kind is CameraType.EQUIRECTANGULAR else 1)
    model, seen = small_gaussian(z), camera(kind)
    sharp = model.get_outputs_for_camera(seen)["rgb"]
    assert float(sharp.max()) > 0.1
    aperture = APERTURE * FOCAL[CameraType.PERSPECTIVE] / per_radian
    look_through(model, LensOptions(aperture, focus, lens_samples=96))
    blurred = model.get_outputs_for_camera(seen)["rgb"]
    # The variance of an even disc is diameter^2 / 16 along each axis; that of the image is added.
    diameter = aperture * abs(z - focus) / focus * per_radian / z
    for before, after in zip(spread(sharp), spread(blurred), strict=True):
        measured = 4 * math.sqrt(max(after - before, 0.0))
        print(f"{kind.name}, {z} with {focus} in focus: {measured:.2f} pixels, formula {diameter:.2f}")
        assert measured == pytest.approx(diameter, rel=0.02, abs=0.1)
