import math

import pytest
import torch

from ns_support.corrections.exposure import LEAST_SPREAD, START, TRIAL, Exposure, color_corrected, within_range

COUNT = 6


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def with_gains(mode, gains):
    """Corrections whose photographs are brighter by these factors."""
    exposure = Exposure(mode, len(gains))
    with torch.no_grad():
        exposure.adjustments[:, :, :3] = (torch.tensor(gains) - 1)[:, None, None] * torch.eye(3)
    return exposure


def test_a_photograph_shows_an_affine_map_of_the_scene_before_the_background():
    exposure = Exposure("on", COUNT)
    with torch.no_grad():
        exposure.adjustments.copy_(random(COUNT, 3, 4) - 0.5)
    color, coverage = random(10, 3, seed=1), random(10, 1, seed=2)
    exposure.before_step(1.0)
    shown = exposure(color * coverage, coverage, 2)
    matrix, shift = torch.eye(3) + exposure.adjustments[2, :, :3], exposure.adjustments[2, :, 3]
    torch.testing.assert_close(shown, (color @ matrix.T + shift) * coverage)
    numbers = torch.arange(10) % COUNT
    each = torch.stack([exposure(color[i : i + 1], coverage[i : i + 1], int(n))[0] for i, n in enumerate(numbers)])
    torch.testing.assert_close(exposure(color, coverage, numbers), each)
    mean = exposure.adjustments.mean(0)
    expected = (color @ (torch.eye(3) + mean[:, :3]).T + mean[:, 3]) * coverage
    torch.testing.assert_close(exposure(color * coverage, coverage, None), expected)


@pytest.mark.parametrize(("mode", "photos"), [("off", COUNT), ("on", 0), ("auto", 1)])
def test_nothing_is_corrected_without_photographs_to_compare(mode, photos):
    exposure, color = Exposure(mode, photos), random(10, 3)
    assert not exposure.get_param_groups()
    assert not exposure.state_dict()
    assert exposure(color, color[:, :1], 0) is color
    assert exposure.after_step(1.0) == ""


def test_gains_are_found_from_colours():
    """Photographs of a wall, each with a gain of its own: their ratios come out, and the wall's own colours do."""
    wall, gains = 0.2 + 0.4 * random(200, 3), torch.tensor([0.7, 0.9, 1.0, 1.1, 1.2, 1.3])
    exposure = Exposure("on", COUNT)
    exposure.before_step(START)
    scene = torch.full((200, 3), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([scene, *exposure.parameters()], lr=1e-2)
    for step in range(1500):
        photo = step % COUNT
        loss = (exposure(scene, torch.ones(200, 1), photo) - gains[photo] * wall).square().mean()
        (loss + exposure.penalty(photo)).backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = exposure.adjustments.detach()
    gray = 0.5 * (1 + rows[..., :3].sum(-1)) + rows[..., 3]
    ratios = (gray / gray[2]).mean(-1)
    torch.testing.assert_close(ratios, gains / gains[2], rtol=0.06, atol=0)
    mean = exposure(scene.detach(), torch.ones(200, 1), None)
    scale = float((mean * wall).sum() / wall.square().sum())
    assert float((mean - scale * wall).abs().max()) < 0.03
    assert 0.8 < scale < 1.2


def test_what_differs_stays_corrected():
    exposure = with_gains("auto", [0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    assert exposure.after_step(TRIAL - 0.01) == ""
    said = exposure.after_step(TRIAL)  # they differ by 18 %
    assert "differ in brightness" in said
    assert exposure.corrects
    assert exposure.after_step(TRIAL + 0.01) == ""


def test_what_agrees_is_left_alone_from_then_on_and_after_a_resume():
    exposure = with_gains("auto", [1.0, 1.001, 1.002, 0.999, 0.998, 1.0])
    assert "less than 8%: their exposures are not corrected" in exposure.after_step(TRIAL)
    assert not exposure.corrects
    assert not exposure.adjustments.any()
    color = random(4, 3)
    assert exposure(color, color[:, :1], 1) is color
    resumed = Exposure("auto", 6)
    resumed.load_state_dict(exposure.state_dict())
    assert not resumed.corrects


def test_a_resumed_training_does_not_decide_again():
    exposure = with_gains("auto", [0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    assert exposure.after_step(TRIAL)
    resumed = Exposure("auto", 6)
    resumed.load_state_dict(exposure.state_dict())
    with torch.no_grad():
        resumed.adjustments.zero_()  # they agree by now
    assert resumed.after_step(TRIAL + 0.1) == ""
    assert resumed.corrects


def test_before_they_start_photographs_show_the_scene():
    exposure, color = with_gains("on", [0.5] * 6), random(4, 3)
    exposure.before_step(START / 2)
    assert exposure(color, color[:, :1], 1) is color
    exposure.before_step(START)
    assert not torch.equal(exposure(color, color[:, :1], 1), color)


def test_told_to_it_corrects_even_what_agrees():
    exposure = with_gains("on", [1.0] * 6)
    assert exposure.after_step(1.0) == ""
    assert exposure.corrects


def test_the_spread_is_that_of_logarithms():
    gains = [0.5, 0.7, 1.0, 1.4, 2.0, 1.0]
    expected = torch.tensor([math.log(0.5 * (1 + g - 1)) for g in gains]).std()
    assert float(with_gains("on", gains).spread()) == pytest.approx(float(expected), rel=1e-5)
    assert with_gains("on", [1.0] * 6).spread() < LEAST_SPREAD


def test_a_map_of_colours_is_taken_out():
    truth = 0.1 + 0.8 * random(20, 30, 3)
    image = 0.05 + 0.8 * truth
    assert float((image - truth).abs().max()) > 0.05
    assert float((color_corrected(image, truth) - truth).abs().max()) < 1e-5


def test_a_clipped_background_neither_tells_the_map_nor_follows_it():
    truth = 0.1 + 0.6 * random(20, 30, 3)
    image = 0.8 * truth
    truth[:10], image[:10] = 1.0, 1.0
    corrected = color_corrected(image, truth)
    torch.testing.assert_close(corrected, truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_images_of_one_colour_can_be_corrected(value):
    truth = random(20, 30, 3)
    corrected = color_corrected(torch.full((20, 30, 3), value), truth)
    assert bool(corrected.isfinite().all())
    if value == 0.5:  # the map may bring it to the mean of the truth, and no nearer
        torch.testing.assert_close(corrected[0, 0], truth.mean((0, 1)), rtol=0, atol=2e-3)


@pytest.mark.parametrize("photo", [2, torch.arange(10) % COUNT])
def test_the_curvature_is_that_of_the_squared_error(photo):
    """Against the second derivatives of one channel's squared error and of the penalty; the others are alike."""
    exposure = Exposure("on", COUNT)
    exposure.before_step(1.0)
    coverage = random(10, 1, seed=2)
    color, wanted = random(10, 3, seed=1) * coverage, random(10, 3, seed=3)

    def loss(rows):
        """Of the first channel's maps [N, 4]."""
        features = torch.cat([color, coverage], 1)
        shown = color[:, 0] + (features * rows[photo]).sum(-1)
        penalty = 0.01 * rows[photo].expand(10, 4).square().sum() / 10 / 12
        return (shown - wanted[:, 0]).square().sum() / 30 + penalty

    expected = torch.autograd.functional.hessian(loss, torch.zeros(COUNT, 4))
    exposure(color, coverage, photo)
    exposure.curvature_of(torch.full((10,), 2 / 30)).backward()
    for number in range(COUNT):
        torch.testing.assert_close(exposure.curvature.grad[number], expected[number, :, number, :])


def test_photographs_differ_from_their_mean_only():
    exposure = with_gains("on", [0.8, 1.0, 1.5])
    exposure.before_step(1.0)
    before = exposure.adjustments.detach().clone()
    exposure.after_step(0.5)
    torch.testing.assert_close(exposure.adjustments.detach(), before - before.mean(0))


def test_clipped_pixels_do_not_say_how_bright_it_was():
    image = torch.tensor([1.0, 1.0, 0.7, 0.0, 0.0, 0.3])
    rgb = torch.tensor([1.4, 0.8, 1.4, -0.2, 0.1, -0.2], requires_grad=True)
    shown = within_range(rgb, image)
    assert shown.tolist() == pytest.approx([1.0, 0.8, 1.4, 0.0, 0.1, -0.2])
    (shown - image).abs().sum().backward()
    assert rgb.grad.tolist() == [0.0, -1.0, 1.0, 0.0, 1.0, -1.0]
