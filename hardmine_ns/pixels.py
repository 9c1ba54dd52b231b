"""Pixels to train on: those that masks show, and the images on a GPU that they are read from."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor


class VisiblePixels:
    """The pixels that masks show, of images of any sizes, drawn uniformly.

    Kept as runs: pixels that follow one another in an image, all visible, 16 bytes for each run. A photo's mask has a
    few in a row, an image without a mask is one; a list of the pixels would take 24 bytes for each of them.

    Attributes:
        count: how many pixels are visible.

    Args:
        sizes: rows and columns of each image.
        masks: for each image [H, W] or [H, W, 1], non-zero where pixels are visible, all on one device, in a list or
            stacked; None for everywhere.

    Example:
        >>> mask = torch.zeros(4, 5)
        >>> mask[2, 3] = 1
        >>> VisiblePixels([(4, 5), (4, 5)], [torch.zeros(4, 5), mask]).draw(2).tolist()
        [[1, 2, 3], [1, 2, 3]]
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], masks: Sequence[Tensor] | Tensor | None = None) -> None:
        device = masks[0].device if masks is not None and len(masks) else torch.device("cpu")
        self._widths = torch.tensor([width for _, width in sizes], dtype=torch.int64, device=device)
        areas = torch.tensor([height * width for height, width in sizes], dtype=torch.int64, device=device)
        self._ends = areas.cumsum(0)
        self._starts = self._ends - areas
        if masks is None:
            runs = torch.stack([self._starts, self._ends])
        else:
            offsets = self._starts.tolist()
            runs = torch.cat([_runs(mask) + offset for mask, offset in zip(masks, offsets, strict=True)], dim=1)
        lengths = runs[1] - runs[0]
        self._run_ends = lengths.cumsum(0)
        # From a visible pixel's number among the visible ones to its number among all.
        self._shifts = runs[0] - (self._run_ends - lengths)
        self.count = int(lengths.sum())

    def draw(self, number: int) -> Tensor:
        """Draw pixels with replacement, each with the same probability.

        Args:
            number: of pixels n; `count` must not be 0.

        Returns:
            [n, 3] int64: image, row, column. On the masks' device.
        """
        return self.places(self.draw_numbers(number))

    def draw_numbers(self, number: int) -> Tensor:
        """The same pixels [n] int64 by their numbers: counted row by row, image by image, hidden ones too."""
        drawn = torch.randint(self.count, (number,), device=self._widths.device)
        return drawn + self._shifts[torch.searchsorted(self._run_ends, drawn, right=True)]

    def places(self, pixels: Tensor) -> Tensor:
        """Image, row and column [n, 3] of pixels [n] by their numbers."""
        image = torch.searchsorted(self._ends, pixels, right=True)
        within, width = pixels - self._starts[image], self._widths[image]
        return torch.stack([image, within // width, within % width], dim=-1)

    def to(self, device: torch.device | str) -> VisiblePixels:
        """The same, drawing on a device."""
        moved = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved


def _runs(mask: Tensor) -> Tensor:
    """First pixel of each run and the one behind its last, [2, runs], counted row by row."""
    visible = (mask.reshape(-1) != 0).to(torch.int8)
    edge = visible.new_zeros(1)
    steps = torch.diff(visible, prepend=edge, append=edge)
    return torch.stack([torch.nonzero(steps == step)[:, 0] for step in (1, -1)])


class PixelBank:
    """Training images on a device, from which pixels are drawn there: nothing is copied in a step, nobody waits.

    Colours are kept in a byte each if all are multiples of 1 / 255, as those of 8-bit images are; else as they are.

    Attributes:
        count: how many pixels may be drawn.

    Args:
        images: in the order of the cameras, each [H, W, C] float32 in [0, 1].
        masks: of each image [H, W, 1], non-zero where pixels may be drawn; None: everywhere.
        device: where they are kept.
    """

    def __init__(self, images: Sequence[Tensor], masks: Sequence[Tensor] | None, device: torch.device | str) -> None:
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        hosts = None if masks is None else [mask.cpu() for mask in masks]
        self._pixels = VisiblePixels(sizes, hosts).to(device)
        self.count = self._pixels.count
        flat = [image.reshape(-1, image.shape[-1]).cpu() for image in images]
        small = [_bytes(values) for values in flat]
        kept = [values for values in small if values is not None]
        self._colors = torch.cat([values.to(device) for values in (kept if len(kept) == len(flat) else flat)])

    def draw(self, number: int) -> dict[str, Tensor]:
        """Draw pixels with replacement, each with the same probability.

        Args:
            number: of pixels n; `count` must not be 0.

        Returns:
            "image" [n, C] float32 and "indices" [n, 3] int64: image, row, column.
        """
        pixels = self._pixels.draw_numbers(number)
        colors = self._colors[pixels]
        return {
            "image": colors.float() / 255.0 if colors.dtype == torch.uint8 else colors,
            "indices": self._pixels.places(pixels),
        }


def _bytes(values: Tensor) -> Tensor | None:
    """Colours in a byte each; None if that changes them."""
    found = (values * 255.0).round().clamp(0, 255).to(torch.uint8)
    return found if torch.equal(found.float() / 255.0, values) else None


def collated_images(batch: dict[str, Any], ignores_masks: bool = False) -> tuple[list[Tensor], list[Tensor] | None]:
    """The images of nerfstudio's cached batch, and their masks if there are some, in the order of the cameras."""
    places = batch["image_idx"].cpu().argsort().tolist()
    masks = None if ignores_masks or "mask" not in batch else [batch["mask"][place] for place in places]
    return [batch["image"][place] for place in places], masks
