"""Reads masks of all pixel formats: 0 hides, 255 shows, and half is the threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ns_support.data.images import opened
from ns_support.errors import UserError


def read_mask(path: Path, scale: float = 1.0) -> Tensor:
    """Which pixels a mask shows.

    Colours are converted to luminance, and transparent pixels count as black. In a mask of zeros and ones, ones show.

    Args:
        path: the mask's file.
        scale: factor to resize by, without interpolation.

    Returns:
        [H, W, 1] bool.

    Raises:
        UserError: the file can't be read, or contains labels instead of black and white.
    """
    with opened(path) as image:
        mask: Image.Image = image
        if scale != 1.0:
            size = int(image.width * scale), int(image.height * scale)
            mask = image.resize(size, resample=Image.Resampling.NEAREST)
        values = _gray(mask)
    return torch.from_numpy(values >= _threshold(path, values))[..., None]


def _gray(image: Image.Image) -> NDArray[Any]:
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return np.nan_to_num(np.array(image))
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return np.array(image.convert("L"))
    rgba = np.array(image.convert("RGBA"))
    luminance = rgba[..., :3] @ np.array([0.299, 0.587, 0.114])
    return luminance * (rgba[..., 3] / 255.0)


def _threshold(path: Path, values: NDArray[Any]) -> float:
    most = float(values.max()) if values.size else 0.0
    if most <= 1.0:
        return 0.5
    if most > 255.0:
        return 0.5 * (65535.0 if most <= 65535.0 else most)
    if most < 127.5:
        raise UserError(
            f"The mask {path} has no value above {most:g} of 255: it holds labels, not black and white. Write masks "
            "in which 0 hides and 255 shows."
        )
    return 127.5
