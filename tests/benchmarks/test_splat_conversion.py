"""The splatting that the benchmark of the conversion compares with: one and two splats, by hand."""

import math

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras

SIZE, FOCAL, DISTANCE = 45, 50.0, 4.0


@pytest.fixture(scope="module")
def benchmark(script):
    return script("splat_conversion")


def splats(*rows):
    """Each: z of the centre, scales, opacity, colour; at x = y = 0, unturned."""
    names = [*"xyz", *(f"scale_{i}" for i in range(3)), "opacity", *(f"f_dc_{i}" for i in range(3))]
    names += [f"rot_{i}" for i in range(4)] + [f"f_rest_{i}" for i in range(9)]
    lines = []
    for z, scales, opacity, color in rows:
        base = [(c - 0.5) / 0.28209479177387814 for c in color]
        logit = math.log(opacity / (1 - opacity))
        lines.append([0, 0, z, *map(math.log, scales), logit, *base, 1, 0, 0, 0, *[0] * 9])
    return dict(zip(names, np.array(lines, np.float32).T, strict=True))


def camera():
    pose = torch.eye(4)[None, :3].clone()
    pose[0, 2, 3] = DISTANCE  # looks along -z at the origin
    return Cameras(pose, FOCAL, FOCAL, SIZE / 2, SIZE / 2, SIZE, SIZE)[0:1]


def test_one_splat_is_a_gaussian_on_the_image(benchmark):
    sx, sy, opacity = 0.2, 0.1, 0.7
    image = benchmark.splat_image(splats((0.0, (sx, sy, 0.3), opacity, (1.0, 0.5, 0.0))), camera(), torch.zeros(3))
    offset = torch.arange(SIZE) + 0.5 - SIZE / 2
    variances = [(s * FOCAL / DISTANCE) ** 2 + benchmark.LOW_PASS for s in (sx, sy)]
    wanted = opacity * torch.exp(-0.5 * (offset**2 / variances[0] + offset[:, None] ** 2 / variances[1]))
    wanted = torch.where(wanted < 1 / 255, 0.0, wanted)
    near = (offset.abs() < 7) & (offset.abs() < 7)[:, None]  # within three standard deviations of the wider axis
    torch.testing.assert_close(image[..., 0][near], wanted[near], atol=2e-3, rtol=0)
    torch.testing.assert_close(image[..., 1][near], 0.5 * wanted[near], atol=2e-3, rtol=0)


def test_the_nearer_splat_hides_the_other_whatever_their_order(benchmark):
    near, far = (1.0, (0.5,) * 3, 0.6, (1.0, 0.0, 0.0)), (-1.0, (0.5,) * 3, 0.5, (0.0, 1.0, 0.0))
    middle = SIZE // 2
    for rows in ((near, far), (far, near)):
        image = benchmark.splat_image(splats(*rows), camera(), torch.tensor([0.0, 0.0, 1.0]))
        wanted = torch.tensor([0.6, 0.4 * 0.5, 0.4 * 0.5])
        torch.testing.assert_close(image[middle, middle], wanted, atol=2e-3, rtol=0)


def test_the_picture_shows_where_splatting_differs(benchmark):
    cast = torch.full((24, 32, 3), 0.5)
    other = cast.clone()
    other[:, 16:] += 0.1
    photograph = torch.zeros_like(cast)
    images = {"photograph": photograph, "cast": cast, "cast, file read back": cast, "splatted": other}
    sheet = np.asarray(benchmark.picture(images))
    width, height = 32 * 8, 24 * 8  # enlarged to 240 pixels or more
    below = sheet[-height:]
    assert sheet.shape[1] == 2 * width + benchmark.montage.__globals__["GAP"]
    assert (below[:, :width] == 0).all()  # the photograph
    assert (below[:, -width : -width // 2] == 255).all()  # no difference: white
    assert np.unique(below[:, -width // 2 :]).tolist() == [round(255 * (1 - 4 * 0.1))]
