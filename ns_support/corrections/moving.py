"""Pixels that show what has moved: people who walk through, leaves, a shadow.

Whatever one photograph shows and the others contradict keeps a large error however long training goes on. Each
photograph is divided into 32 x 32 blocks, whose running mean errors are kept; a block whose error stays far above the
median of those that show something does not count. Blocks and not pixels, as in RobustNeRF (Sabour et al. 2023): a
single pixel with a large error is more often a fine detail, which must be learnt.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ns_support.concurrency.processes import Processes

BLOCKS = 32
"""Blocks along each side of a photograph."""
START = 0.15
"""Fraction of the training from which blocks may be left out: before, all errors are large."""
OUTLIER = 4.0
"""Multiple of the median error from which a block is left out."""
_NEW = 0.2
"""Weight of a new error in a block's running mean."""
_EMPTY = 0.01
"""Multiple of the mean error below which a block shows nothing that could be wrong."""
_MEDIAN_EVERY = 20
"""Steps between two computations of the median."""


class MovingPixels(nn.Module):
    """The running errors of all blocks of the training photographs, and which of them count.

    Args:
        is_on: whether anything is ever left out; otherwise nothing is computed.
        num_photos: N >= 0.
    """

    errors: Tensor
    limit: Tensor

    def __init__(self, is_on: bool, num_photos: int) -> None:
        super().__init__()
        self.is_on = is_on and num_photos > 1
        self.starts = False
        """Whether blocks are left out at the step at hand."""
        if self.is_on:
            # Negative where nothing has been seen.
            self.register_buffer("errors", torch.full((num_photos * BLOCKS * BLOCKS,), -1.0))
            self.register_buffer("limit", torch.tensor(torch.inf))
            self._sums: Tensor = torch.zeros(2, len(self.errors))

    def weights(self, blocks: Tensor, errors: Tensor) -> Tensor:
        """Which pixels count, and take note of their errors.

        Args:
            blocks: [*] int64, the block of each pixel (`window_blocks`, `pixel_blocks`).
            errors: [*] >= 0.

        Returns:
            [*] 1 for those that count, 0 for the others.
        """
        self._sums = self._sums.to(errors.device)
        flat, values = blocks.reshape(-1), errors.detach().reshape(-1).float()
        self._sums[0].index_add_(0, flat, values)
        self._sums[1].index_add_(0, flat, torch.ones_like(values))
        if not self.starts:
            return torch.ones_like(errors)
        return (self.errors[blocks] <= self.limit).to(errors.dtype)

    def before_step(self, progress: float) -> None:
        """Take note of what fraction of the training is done."""
        self.starts = progress >= START

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Update the running means with the errors that all processes saw in a step."""
        if not self.is_on:
            return
        sums, counts = Processes.current().sum(self._sums.to(self.errors.device))
        means = sums / counts.clamp_min(1)
        known = torch.where(self.errors < 0, means, torch.lerp(self.errors, means, _NEW))
        self.errors.copy_(torch.where(counts > 0, known, self.errors))
        self._sums.zero_()
        if step % _MEDIAN_EVERY == 0:
            self.limit.copy_(OUTLIER * typical_error(self.errors))

    @property
    def left_out(self) -> Tensor:
        """Fraction of the blocks that do not count, in [0, 1]; a scalar."""
        return (self.errors > self.limit).float().mean() if self.is_on and self.starts else torch.zeros(())


def typical_error(errors: Tensor) -> Tensor:
    """Median error, a scalar, of the blocks that show something; infinite if nothing has been seen.

    An object before a plain background leaves most blocks without any error. Their median would be next to 0, and the
    object itself would be left out.

    Args:
        errors: [blocks] running means, negative where nothing has been seen.
    """
    seen = errors >= 0
    mean = errors.clamp_min(0).sum() / seen.sum().clamp_min(1)
    shows = torch.where(seen & (errors >= _EMPTY * mean), errors, torch.nan)
    return shows.nanmedian().nan_to_num(nan=torch.inf, posinf=torch.inf)


def window_blocks(
    photo: int, window: tuple[int, int, int, int], size: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """The block of each pixel of a crop.

    Args:
        photo: number of the photograph.
        window: first row, first column, rows, columns.
        size: height and width of the image, at whatever resolution it is used.
        device: of the result.

    Returns:
        [rows, columns] int64.
    """
    top, left, rows, columns = window
    down = torch.arange(top, top + rows, device=device) * BLOCKS // size[0]
    across = torch.arange(left, left + columns, device=device) * BLOCKS // size[1]
    return (photo * BLOCKS + down[:, None]) * BLOCKS + across


def pixel_blocks(indices: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """The block of each pixel.

    Args:
        indices: [n, 3] int64: photograph, row, column.
        heights: [N] int64 of the photographs.
        widths: [N] int64.

    Returns:
        [n] int64.
    """
    photo, row, column = indices.unbind(-1)
    return (photo * BLOCKS + row * BLOCKS // heights[photo]) * BLOCKS + column * BLOCKS // widths[photo]
