"""What a rendering is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ground_truth(
    outputs: dict[str, Tensor], batch: dict[str, Any], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """A batch's image over the background and its mask, cut to the window if there is one.

    Args:
        outputs: of the model: "background" [h, w, 3]; in training "window" [4], first row, first column, h, w.
        batch: "image" [H, W, 3 or 4], floating point or uint8; perhaps "mask" [H, W, 1].
        device: where to put them.

    Returns:
        [h, w, 3] in [0, 1], and [h, w, 1] or None.
    """
    image, mask = batch["image"].to(device), batch.get("mask")
    if "window" in outputs:
        top, left, height, width = outputs["window"].tolist()
        image = image[top : top + height, left : left + width]
        mask = None if mask is None else mask[top : top + height, left : left + width]
    if image.dtype == torch.uint8:
        image = image.float() / 255.0
    if image.shape[-1] == 4:
        background = outputs["background"].detach()
        image = image[..., :3] * image[..., 3:] + (1.0 - image[..., 3:]) * background
    return image, None if mask is None else mask.to(device)
