"""Splatting: the kernel against its reference, both against what is known of one splat, and the fit."""

import math
import threading

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ns_support.concurrency import threads
from ns_support.data.ply import read_ply
from ns_support.errors import UserError
from ns_support.lenses.lens import LensType, make_lens
from raygauss_ns.casting import CastSettings
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.initialization import StartPoints
from raygauss_ns.gaussians.ply_formats import splat_columns
from raygauss_ns.splatting import Splats, SplatView, splat
from raygauss_ns.splatting.api import visible
from raygauss_ns.splatting.files import fitted_columns, require_format, splats_of, write_splats
from raygauss_ns.splatting.fit import fit_splats, mean_psnr, sharpened
from raygauss_ns.splatting.projection import LOW_PASS, rows_in_view
from raygauss_ns.splatting.reference import composite_reference
from raygauss_ns.splatting.targets import Camera, Scene, Targets, between, pinholes

FRONT = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]])
VIEW = SplatView(FRONT, (60.0, 65.0), (23.0, 20.0), (45, 37))
SKY = torch.tensor([0.2, 0.7, 1.0])


def some(count=300, opacity=0.0, generator=None):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    scales = torch.log(torch.rand(count, 3, generator=generator) * 0.15 + 0.02)
    means, quats, logits = 0.5 * normal(count, 3), normal(count, 4), 2 * normal(count) + opacity
    splats = Splats(means, scales, quats, logits, normal(count, 3), 0.1 * normal(count, 8, 3))
    return Splats(*(value.requires_grad_() for value in splats))


def one(scales, opacity, depth=0.0, turn=None):
    quat = [1.0, 0, 0, 0] if turn is None else [math.cos(turn / 2), 0, 0, math.sin(turn / 2)]
    logit = torch.tensor([math.log(opacity / (1 - opacity))])
    means = torch.tensor([[0.0, 0.0, depth]])
    log_scales = torch.log(torch.tensor([scales]))
    white = torch.full((1, 3), 0.5 / 0.28209479177387814)
    return Splats(means, log_scales, torch.tensor([quat]), logit, white, torch.zeros(1, 0, 3))


@pytest.mark.parametrize("turn", [None, math.pi / 2])
def test_one_splat_is_a_gaussian_on_the_image(turn):
    focal, side, opacity = 50.0, 41, 0.7
    view = SplatView(FRONT, (focal, focal), (side / 2, side / 2), (side, side))
    image = splat(one([0.2, 0.1, 0.3], opacity, turn=turn), view, torch.zeros(3))
    sx, sy = (0.2, 0.1) if turn is None else (0.1, 0.2)
    offset = torch.arange(side) + 0.5 - side / 2
    variances = [(s * focal / 4) ** 2 + LOW_PASS for s in (sx, sy)]
    wanted = opacity * torch.exp(-0.5 * (offset**2 / variances[0] + offset[:, None] ** 2 / variances[1]))
    wanted = torch.where(wanted < 1 / 255, 0.0, wanted)
    for channel in image.unbind(-1):
        torch.testing.assert_close(channel, wanted, atol=2e-5, rtol=0)


def test_the_nearer_splat_hides_the_other():
    red, far = one([0.5] * 3, 0.6, 1.0), one([0.5] * 3, 0.5, -1.0)
    red = red._replace(sh_base=red.sh_base * torch.tensor([1.0, -1.0, -1.0]))
    side = 41
    view = SplatView(FRONT, (50.0, 50.0), (side / 2, side / 2), (side, side))
    for pair in ((red, far), (far, red)):
        both = Splats(*(torch.cat(values) for values in zip(*pair, strict=True)))
        middle = splat(both, view, torch.zeros(3))[side // 2, side // 2]
        torch.testing.assert_close(middle, torch.tensor([0.6 + 0.4 * 0.5, 0.2, 0.2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("opacity", [0.0, 5.0])
def test_the_kernel_agrees_with_its_reference(opacity, monkeypatch):
    splats, running = some(opacity=opacity), threading.active_count()
    image = splat(splats, VIEW, SKY)
    reference = composite_reference(visible(splats, VIEW), VIEW.size, SKY)
    assert float(image.detach().std()) > 0.1
    torch.testing.assert_close(image, reference, atol=2e-6, rtol=0)
    cotangent = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((x * cotangent).sum(), splats) for x in (image, reference))
    for name, a, b in zip(Splats._fields, ours, theirs, strict=True):
        assert float(b.norm()) > 0, name
        assert float((a - b).norm() / b.norm()) < 2e-5, name
    monkeypatch.setattr("raygauss_ns.splatting.cpu.num_threads", lambda: 3)
    again = splat(splats, VIEW, SKY)
    assert torch.equal(again, image)
    for a, b in zip(torch.autograd.grad((again * cotangent).sum(), splats), ours, strict=True):
        assert torch.equal(a, b)
    assert threading.active_count() <= running + 8  # those of a pool stay
    assert threads.num_threads() >= 1


def test_gradients_of_the_projection():
    # In double precision, through the reference: finite differences of the whole of it but the sorting.
    splats = Splats(*(value.detach().double().requires_grad_() for value in some(6)))
    view = VIEW._replace(camera_to_world=FRONT.double(), size=(7, 5), center=(3.0, 2.0), focal=(9.0, 8.0))

    def image(*values):
        return composite_reference(visible(Splats(*values), view), view.size, SKY.double())

    assert torch.autograd.gradcheck(image, tuple(splats), atol=1e-5, rtol=1e-3, nondet_tol=1e-9)


def test_no_splat_in_view_shows_the_background():
    behind = some()._replace(means=some().means + torch.tensor([0.0, 0.0, 9.0]))
    image = splat(behind, VIEW, SKY)
    assert torch.equal(image, SKY.expand_as(image))
    image.sum().backward()


def test_a_window_is_a_part_of_the_image():
    splats = some()
    whole = splat(splats, VIEW, SKY)
    top, left, rows, columns = 5, 9, 20, 17
    window = VIEW._replace(center=(23.0 - left, 20.0 - top), size=(columns, rows))
    part = whole[top : top + rows, left : left + columns]
    # The limits of the field of view differ, which only splats far outside would notice.
    torch.testing.assert_close(splat(splats, window, SKY), part, atol=2e-3, rtol=0)
    assert len(rows_in_view(splats, window)) < len(rows_in_view(splats, VIEW))


# ---- what is fitted to ----


def scene():
    torch.manual_seed(0)
    points = torch.rand(120, 3) - 0.5
    cloud = GaussianCloud(StartPoints(points, torch.rand(120, 3)), 1.0, 12.0, num_lobes=0)
    return Scene(cloud, CastSettings(step=0.02, density_threshold=0.1), 0.05)


def cameras(count=4, side=40):
    lens = make_lens(LensType.PERSPECTIVE, (45.0, 45.0), (side / 2, side / 2), (side, side))
    poses = []
    for i in range(count):
        turn = torch.from_numpy(Rotation.from_euler("y", 0.4 * i).as_matrix()).float()
        poses.append(torch.cat([turn, turn @ torch.tensor([[0.0], [0.0], [2.5]])], 1))
    return [Camera(lens, pose) for pose in poses]


def test_a_camera_between_two_others():
    first, second = cameras(2)
    middle = between(first, second, 0.5).camera_to_world
    wanted = torch.from_numpy(Rotation.from_euler("y", 0.2).as_matrix()).float()
    torch.testing.assert_close(middle[:, :3], wanted)
    torch.testing.assert_close(middle[:, 3], (first.camera_to_world[:, 3] + second.camera_to_world[:, 3]) / 2)


def test_lenses_as_pinholes():
    fisheye = make_lens(LensType.FISHEYE, (30.0, 31.0), (20.0, 19.0), (40, 38), (0.1, 0, 0, 0, 0, 0))
    ((lens, _),) = pinholes(fisheye, FRONT)
    assert lens.is_pinhole
    assert (lens.fx, lens.cy, int(lens.width)) == (30.0, 19.0, 40)
    panorama = make_lens(LensType.EQUIRECTANGULAR, (40.0, 40.0), (40.0, 20.0), (80, 40))
    around = pinholes(panorama, FRONT)
    ahead = torch.stack([-pose[:, 2] for _, pose in around])
    torch.testing.assert_close(ahead.sum(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert all(float(pose[1, 1]) == pytest.approx(1) for _, pose in around)  # upright
    assert around[0][0].fx == 10.0


def test_targets_are_the_ray_cast_images_of_the_cameras():
    made, views = scene(), cameras()
    targets = Targets(made, views, side=24, seed=0)
    drawn = [targets.draw() for _ in range(6)]
    assert targets.count >= 1
    assert all(target.rgb.shape == (24, 24, 3) for target in drawn)
    whole = Targets(made, views, side=40, seed=0).cast(views[0])
    window = targets.cast(views[0], whole=True)  # from the middle
    torch.testing.assert_close(window.rgb, whole.rgb[8:32, 8:32], atol=1e-5, rtol=0)
    before = whole.before(SKY)
    torch.testing.assert_close(before, whole.rgb + whole.transmittance * SKY)


def test_what_viewers_add_to_a_splat_is_taken_from_it():
    focal, side, pixels = 50.0, 41, (2.0, 1.5)
    view = SplatView(FRONT, (focal, focal), (side / 2, side / 2), (side, side))
    lens = make_lens(LensType.PERSPECTIVE, view.focal, view.center, view.size)
    scales = [pixel * 4 / focal for pixel in pixels]
    image = splat(sharpened(one([*scales, 0.3], 0.7), [Camera(lens, FRONT)]), view, torch.zeros(3))[..., 0]
    offset = torch.arange(side) + 0.5 - side / 2
    wanted = 0.7 * torch.exp(-0.5 * ((offset / pixels[0]) ** 2 + (offset[:, None] / pixels[1]) ** 2))
    torch.testing.assert_close(image, torch.where(wanted < 1 / 255, 0.0, wanted), atol=1e-4, rtol=0)
    thin = one([1e-4] * 3, 0.7)
    torch.testing.assert_close(sharpened(thin, [Camera(lens, FRONT)]).log_scales, thin.log_scales + math.log(0.2))


def test_a_fit_comes_closer_to_the_ray_cast_images():
    made, views = scene(), cameras()
    start = splats_of(splat_columns(made.cloud, made.settings.density_threshold))
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > 60

    fit = fit_splats(start, made, views, seconds=60.0, stopped=stopped)
    assert fit.steps == 60
    assert fit.after > fit.before + 3
    target = Targets(made, views, side=40, seed=5).cast(views[1])
    assert mean_psnr(fit.splats, [target]) > mean_psnr(start, [target]) + 2
    assert not torch.equal(fit.splats.means, start.means)


# ---- files ----


@pytest.fixture
def columns():
    return splat_columns(scene().cloud, 0.1)


def test_columns_and_splats(columns):
    splats = splats_of(columns)
    again = fitted_columns(columns, splats)
    assert again.keys() == columns.keys()
    for name, column in columns.items():
        np.testing.assert_allclose(again[name], column, atol=1e-6, err_msg=name)
    moved = fitted_columns(columns, splats._replace(sh_rest=splats.sh_rest + torch.arange(24.0).view(8, 3)))
    assert float(moved["f_rest_17"][0]) == pytest.approx(7.0, abs=1e-5)  # band 2, green: 15 of each channel
    assert float(moved["f_rest_8"][0]) == 0  # degree 3


def test_a_format_whose_package_is_missing(columns, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gsply", None)
    for call in (lambda p: write_splats(p, columns, []), require_format):
        with pytest.raises(UserError, match=r"gsply, which is not installed: pip install"):
            call(tmp_path / "a.spz")
    require_format(tmp_path / "a.ply")


def test_spz_by_gsply(columns, tmp_path):
    gsply = pytest.importorskip("gsply")
    path = tmp_path / "a.spz"
    assert "1/4096" in write_splats(path, columns, [])
    back = gsply.read_spz(path)
    np.testing.assert_allclose(back.means[:, 0], columns["x"], atol=1 / 4096)
    np.testing.assert_allclose(back.scales[:, 1], columns["scale_1"], atol=1 / 16)
    assert path.stat().st_size < 40 * len(columns["x"])


def test_splat_by_ply2splat(columns, tmp_path):
    pytest.importorskip("ply2splat")
    path = tmp_path / "a.splat"
    assert "dependence on the direction" in write_splats(path, columns, [])
    rows = np.frombuffer(path.read_bytes(), np.dtype([("mean", "<3f4"), ("scale", "<3f4"), ("rest", "u1", 8)]))
    assert sorted(rows["mean"][:, 0].tolist()) == sorted(columns["x"].tolist())
    np.testing.assert_allclose(np.sort(rows["scale"][:, 0]), np.sort(np.exp(columns["scale_0"])), rtol=1e-5)


def test_ply_keeps_comments(columns, tmp_path):
    assert write_splats(tmp_path / "a.ply", columns, ["scene_unit 1.0"]) == ""
    assert read_ply(tmp_path / "a.ply").comments == ["scene_unit 1.0"]
