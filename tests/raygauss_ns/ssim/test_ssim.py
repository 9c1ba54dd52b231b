"""SSIM: the kernel against the library that defines it, and its gradient against finite differences."""

import numpy as np
import pytest
import torch
from pytorch_msssim import ssim

from raygauss_ns.ssim.api import structural_similarity, window_weights


def pair(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(height, width, 3, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(truth.permute(2, 0, 1)[None], 3, 1, 1)[0].permute(1, 2, 0)
    return (smooth + 0.1 * torch.randn(height, width, 3, generator=generator)).contiguous(), truth


def library(image, truth):
    return ssim(*(t.permute(2, 0, 1)[None] for t in (image, truth)), data_range=1.0)


@pytest.mark.parametrize(("height", "width"), [(11, 11), (11, 40), (31, 12), (63, 100), (37, 21)])
def test_value_and_gradient_are_the_librarys(height, width):
    image, truth = pair(height, width)
    image.requires_grad_()
    exact = image.detach().double().requires_grad_()
    value, expected = structural_similarity(image, truth), library(exact, truth.double())
    (gradient,) = torch.autograd.grad(3 * value, image)
    (wanted,) = torch.autograd.grad(3 * expected, exact)
    assert float(value) == pytest.approx(float(expected), abs=2e-6)
    assert float((gradient - wanted).norm()) < 1e-5 * float(wanted.norm())


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_gradient_by_differences(fast):
    """Along random directions, or of every pixel by itself."""
    image, truth = (t.double() for t in pair(13, 12, seed=3))
    torch.autograd.gradcheck(
        lambda x: structural_similarity(x, truth), image.requires_grad_(), atol=1e-7, fast_mode=fast
    )


def test_equal_images_are_one_and_stand_still():
    _, truth = pair(30, 20)
    image = truth.clone().requires_grad_()
    value = structural_similarity(image, truth)
    assert float(value) == pytest.approx(1.0, abs=1e-6)
    assert float(torch.autograd.grad(value, image)[0].abs().max()) < 1e-7


def test_a_constant_image_is_finite():
    image, truth = torch.zeros(20, 20, 3, requires_grad=True), torch.zeros(20, 20, 3)
    value = structural_similarity(image, truth)
    assert float(value) == pytest.approx(1.0, abs=1e-6)
    assert bool(torch.autograd.grad(value, image)[0].isfinite().all())


def test_any_number_of_threads_gives_the_same(monkeypatch):
    image, truth = pair(40, 30)
    results = []
    for threads in (1, 2, 7, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        leaf = image.clone().requires_grad_()
        value = structural_similarity(leaf, truth)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_without_a_gradient_and_from_a_slice():
    image, truth = pair(40, 30)
    cut = structural_similarity(image[5:30, 3:25], truth[5:30, 3:25])
    assert not cut.requires_grad
    assert float(cut) == pytest.approx(float(library(image[5:30, 3:25], truth[5:30, 3:25])), abs=2e-6)


def test_window_sums_to_one():
    np.testing.assert_allclose(window_weights().sum(), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((20, 20, 3), (20, 19, 3)), r"images must be \[H, W, 3\], got \[20, 20, 3\] and \[20, 19, 3\]"),
        (((20, 20, 1), (20, 20, 1)), r"images must be \[H, W, 3\]"),
        (((10, 20, 3), (10, 20, 3)), r"at least 11 pixels high and wide, got \[10, 20, 3\]"),
    ],
)
def test_wrong_shapes_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        structural_similarity(*(torch.zeros(shape) for shape in shapes))
