"""The structural similarity (SSIM) of two images and its gradient.

Notation: x the image, y the ground truth, G a blur with a Gaussian window (11 pixels, standard deviation 1.5), and per
pixel and channel m = G x, n = G y, X = G x^2, Y = G y^2, Z = G xy (Wang et al. 2004):

    S = (2 m n + C1) / (m^2 + n^2 + C1) * (2 (Z - m n) + C2) / (X - m^2 + Y - n^2 + C2)
    dS/dx = G^T (dS/dm) + 2 x G^T (dS/dX) + y G^T (dS/dZ)

averaged over the pixels whose window lies within the image. As convolutions these blurs took a fifth of a training
step; on a GPU (`ssim.gpu`) as a hundred small kernels. `pytorch_msssim` is the reference implementation, and is used
wherever the kernels cannot be.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pytorch_msssim import ssim
from torch import Tensor

from ns_support.kernels.backend import triton_module

WINDOW = 11
"""Width of the window (pixels)."""
_SIGMA = 1.5
_CHANNELS = 3


def structural_similarity(image: Tensor, ground_truth: Tensor) -> Tensor:
    """Mean SSIM, differentiable in the image.

    Args:
        image: [H, W, 3], values in [0, 1] (or a little beyond).
        ground_truth: [H, W, 3], same type and device; gets no gradient.

    Returns:
        A scalar, at most 1.

    Raises:
        ValueError: the shapes are not [H, W, 3] and equal, or an image is smaller than the window.
    """
    _check_images(image, ground_truth)
    if image.device.type == "cpu" and image.dtype == ground_truth.dtype == torch.float32:
        return _KernelSimilarity.apply(image, ground_truth)
    if image.is_cuda and image.dtype == ground_truth.dtype == torch.float32:
        return 1 - _mixture_on_gpu(image, ground_truth, 1.0)
    batches = (tensor.permute(2, 0, 1)[None] for tensor in (image, ground_truth))
    return ssim(*batches, data_range=1.0, win_size=WINDOW, win_sigma=_SIGMA)


def mixed_difference(image: Tensor, ground_truth: Tensor, share: float) -> Tensor:
    """(1 - w) mean |x - y| + w (1 - SSIM), differentiable in the image.

    Args:
        image: [H, W, 3] x.
        ground_truth: [H, W, 3] y, as for `structural_similarity`.
        share: w, of the structural similarity, in [0, 1].

    Returns:
        A scalar.

    Raises:
        ValueError: as for `structural_similarity`.
    """
    if image.is_cuda and image.dtype == ground_truth.dtype == torch.float32:
        _check_images(image, ground_truth)
        return _mixture_on_gpu(image, ground_truth, share)
    similarity = structural_similarity(image, ground_truth)
    return (1 - share) * (image - ground_truth).abs().mean() + share * (1 - similarity)


def _mixture_on_gpu(image: Tensor, ground_truth: Tensor, share: float) -> Tensor:
    gpu = triton_module("raygauss_ns.ssim.gpu", "structural similarity on a GPU")
    mixture: Tensor = gpu.Mixture.apply(image, ground_truth, share, tuple(window_weights().tolist()))
    return mixture


def _check_images(image: Tensor, ground_truth: Tensor) -> None:
    if image.shape != ground_truth.shape or image.ndim != 3 or image.shape[2] != _CHANNELS:
        raise ValueError(f"images must be [H, W, 3], got {list(image.shape)} and {list(ground_truth.shape)}")
    if min(image.shape[:2]) < WINDOW:
        raise ValueError(f"images must be at least {WINDOW} pixels high and wide, got {list(image.shape)}")


@lru_cache(maxsize=1)
def window_weights() -> np.ndarray[Any, np.dtype[np.float32]]:
    """[11] weights of the window along one axis; they sum to 1."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    return (weights / weights.sum()).astype(np.float32)


class _KernelSimilarity(torch.autograd.Function):
    """Computes the gradient together with the value, since both need the same blurred images."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, ground_truth: Tensor) -> Tensor:
        # Imported late: Numba takes a second to import.
        from raygauss_ns.ssim.cpu import similarity_and_gradient

        x, y = (tensor.detach().contiguous().numpy() for tensor in (image, ground_truth))
        value, gradient = similarity_and_gradient(x, y, window_weights(), ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(torch.from_numpy(gradient))
        return torch.tensor(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None
