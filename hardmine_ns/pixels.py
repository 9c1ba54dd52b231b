"""Which pixels of a set of images may be drawn, and drawing them. Stands on torch alone."""

from __future__ import annotations

from collections.abc import Sequence

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
        drawn = torch.randint(self.count, (number,), device=self._widths.device)
        pixel = drawn + self._shifts[torch.searchsorted(self._run_ends, drawn, right=True)]
        image = torch.searchsorted(self._ends, pixel, right=True)
        within, width = pixel - self._starts[image], self._widths[image]
        return torch.stack([image, within // width, within % width], dim=-1)


def _runs(mask: Tensor) -> Tensor:
    """First pixel of each run and the one behind its last, [2, runs], counted row by row."""
    visible = (mask.reshape(-1) != 0).to(torch.int8)
    edge = visible.new_zeros(1)
    steps = torch.diff(visible, prepend=edge, append=edge)
    return torch.stack([torch.nonzero(steps == step)[:, 0] for step in (1, -1)])
