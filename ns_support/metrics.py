"""Image metrics and comparison images, the same for both methods."""

from __future__ import annotations

import pickle
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from nerfstudio.utils import colormaps
from torch import Tensor

from ns_support.corrections.exposure import color_corrected
from ns_support.terminal import warn

_SSIM_WINDOW = 11
"""Width of SSIM's window (pixels)."""
_ALEXNET_MIN_SIZE = 31
"""Height and width below which AlexNet's strides and poolings leave nothing (pixels)."""
_CONNECT_SECONDS = 5.0
"""Timeout for the server of the weights (s). torch.hub itself waits for minutes if packets are dropped."""
SCORES = frozenset({"psnr", "ssim", "lpips", "cc_psnr", "cc_ssim"})
"""What an image is scored by."""
ERROR_RANGE = 0.2
"""Error, averaged over the three channels, that is shown in the brightest colour. Fixed, so that error images of
different steps and methods are comparable."""
_NO_WEIGHTS = (OSError, RuntimeError, EOFError, HTTPException, pickle.UnpicklingError)
"""What a failed download or a broken file raises: URLError and timeouts are OSErrors, a wrong hash a RuntimeError."""


class LazyLPIPS:
    """LPIPS (AlexNet), built on first use and never part of a model's state.

    nerfstudio's models build it in their constructor, which downloads AlexNet's weights, fails offline, and adds 10 MB
    to every checkpoint. This class is not a `torch.nn.Module`, so that a model may hold it as an attribute. If the
    weights are unavailable, it warns once and returns None from then on.

    Example:
        >>> lpips = LazyLPIPS()
        >>> lpips(torch.rand(64, 64, 3), torch.rand(64, 64, 3))  # doctest: +SKIP
        0.93
    """

    def __init__(self) -> None:
        self._metric: Any = None
        self._unavailable = False

    @torch.no_grad()
    def __call__(self, image: Tensor, ground_truth: Tensor) -> float | None:
        """LPIPS of two [H, W, 3] images in [0, 1], on the device of `image`.

        Returns:
            None if the weights are unavailable, or if the images are too small for the network (under 31 pixels).
        """
        if self._unavailable or min(image.shape[:2]) < _ALEXNET_MIN_SIZE:
            return None
        if self._metric is None:
            self._metric = self._build()
        if self._metric is None:
            return None
        value = self._metric.to(image.device)(_to_batch(image), _to_batch(ground_truth))
        self._metric.reset()
        return float(value)

    def _build(self) -> Any:
        # Imported late: torchvision takes a second to import.
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import AlexNet_Weights  # type: ignore[import-untyped]

        try:
            _check_obtainable(AlexNet_Weights.DEFAULT.url)
            return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        except _NO_WEIGHTS as error:
            self._unavailable = True
            warn(f"LPIPS is left out: its AlexNet weights can't be had ({error}).")
            return None


def _check_obtainable(url: str) -> None:
    if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).exists():
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_CONNECT_SECONDS).close()


def _to_batch(image: Tensor) -> Tensor:
    return image.clamp(0.0, 1.0).permute(2, 0, 1)[None]


@torch.no_grad()
def image_metrics(
    image: Tensor, ground_truth: Tensor, lpips: LazyLPIPS | None = None, color_corrects: bool = False
) -> dict[str, float]:
    """Scores of an image against the ground truth, both clamped to [0, 1].

    Args:
        image: [H, W, 3] float.
        ground_truth: [H, W, 3] float, same device.
        lpips: the model's LPIPS; None: not computed.
        color_corrects: whether to compute "cc_psnr" and "cc_ssim" too, of the `color_corrected` image.

    Returns:
        "psnr" in dB; "ssim" (11-pixel Gaussian window, data range 1) unless the image is smaller than the window;
        "lpips" (AlexNet) unless it is unavailable; perhaps "cc_psnr" and "cc_ssim".

    Raises:
        ValueError: the two are not [H, W, 3] of the same size.
    """
    if image.shape != ground_truth.shape or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"images must be [H, W, 3], got {list(image.shape)} and {list(ground_truth.shape)}")
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    pair = _to_batch(image), _to_batch(ground_truth)
    metrics = {"psnr": float(peak_signal_noise_ratio(*pair, data_range=1.0))}
    if min(image.shape[:2]) >= _SSIM_WINDOW:
        metrics["ssim"] = float(structural_similarity_index_measure(*pair, data_range=1.0))
    perceptual = None if lpips is None else lpips(image, ground_truth)
    if perceptual is not None:
        metrics["lpips"] = perceptual
    if color_corrects:
        corrected = image_metrics(color_corrected(image, ground_truth), ground_truth)
        metrics |= {f"cc_{name}": score for name, score in corrected.items()}
    return metrics


def in_words(metrics: Mapping[str, float]) -> str:
    """The scores in a metrics dictionary as text: "31.20 dB PSNR, 0.964 SSIM, 0.031 LPIPS"."""
    known = {
        "psnr": "{:.2f} dB PSNR",
        "cc_psnr": "{:.2f} dB with corrected colours",
        "aligned_psnr": "{:.2f} dB from aligned poses",
        "aligned_cc_psnr": "{:.2f} dB with both",
        "ssim": "{:.3f} SSIM",
        "lpips": "{:.3f} LPIPS",
    }
    return ", ".join(text.format(metrics[name]) for name, text in known.items() if name in metrics)


@torch.no_grad()
def comparison_images(outputs: dict[str, Tensor], ground_truth: Tensor) -> dict[str, Tensor]:
    """Images for nerfstudio's log and `ns-eval`, under the keys that its own models use.

    Args:
        outputs: "rgb" [H, W, 3]; "accumulation" and "depth" [H, W, 1].
        ground_truth: [H, W, 3], same device.

    Returns:
        "img" [H, 3W, 3]: ground truth, prediction, error; "accumulation" and "depth" [H, W, 3]. The last three are
        colour-mapped. The error is |prediction - ground truth|, both clamped to [0, 1], averaged over the channels:
        black for 0, light yellow from `ERROR_RANGE` on. The colours of the depth span the range of covered pixels
        (accumulation > 0.5), so that an empty background does not use up the range.
    """
    accumulation, depth = outputs["accumulation"], outputs["depth"].nan_to_num()
    covered = depth[accumulation > 0.5]
    near, far = (float(covered.min()), float(covered.max())) if covered.numel() else (None, None)
    error = (outputs["rgb"].clamp(0.0, 1.0) - ground_truth.clamp(0.0, 1.0)).abs().mean(-1, keepdim=True)
    error_colors = colormaps.apply_float_colormap((error / ERROR_RANGE).clamp(max=1.0), colormap="inferno")
    return {
        "img": torch.cat([ground_truth, outputs["rgb"], error_colors.to(ground_truth)], dim=1),
        "accumulation": colormaps.apply_colormap(accumulation),
        "depth": colormaps.apply_depth_colormap(depth, accumulation, near_plane=near, far_plane=far),
    }
