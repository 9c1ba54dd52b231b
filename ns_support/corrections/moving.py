"""Pixels that show what has moved: people who walk through, leaves, a shadow.

Whatever one photograph shows and the others contradict keeps a large error however long training goes on. Each
photograph is divided into 32 x 32 blocks, whose running errors are kept; where they stay far above the median, nothing
counts. As in RobustNeRF (Sabour et al. 2023), it is not single pixels that are judged, nor single blocks, but each
block with those around it: a large error that stands alone is more often a fine detail, which must be learnt.

Errors are kept as multiples of what the error of all photographs was when a block was seen. It falls all the time, and
a block that was not seen for long would otherwise be taken for one that stayed wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ns_support.concurrency.processes import Processes

BLOCKS = 32
"""Blocks along each side of a photograph."""
_NEW = 0.2
"""Weight of a new error in a block's running mean."""
_NEW_TOTALS = 0.02
"""Weight of a step in the running mean of all photographs' errors."""
_TINY = 1e-12
"""Instead of a divisor of 0."""
_EMPTY = 0.01
"""Multiple of the mean error below which a block shows nothing that could be wrong."""
_JUDGED_EVERY = 20
"""Steps between two decisions which blocks count."""


class MovingRule(NamedTuple):
    """From when on what is left out. What fits depends on how soon a method knows what is only hard to learn.

    Attributes:
        start: fraction of the training from which blocks may be left out.
        outlier: multiple of the median from which the mean error of a block and of those around it is too large.
        own: multiple of the median that the block's own error must exceed too: whatever is beside a person counts.
    """

    start: float
    outlier: float
    own: float


class MovingPixels(nn.Module):
    """The running errors of all blocks of the training photographs, and which of them count.

    Args:
        is_on: whether anything is ever left out; otherwise nothing is computed.
        num_photos: N >= 0.
        rule: of what is left out.
    """

    errors: Tensor
    moved: Tensor
    totals: Tensor

    def __init__(self, is_on: bool, num_photos: int, rule: MovingRule) -> None:
        super().__init__()
        self.is_on, self.rule = is_on and num_photos > 1, rule
        self.starts = False
        """Whether blocks are left out at the step at hand."""
        if self.is_on:
            blocks = num_photos * BLOCKS * BLOCKS
            # Multiples of the mean error, negative where nothing has been seen.
            self.register_buffer("errors", torch.full((blocks,), -1.0))
            self.register_buffer("moved", torch.zeros(blocks, dtype=torch.bool))
            # Running means, over steps, of the sum of errors and of the number of pixels that count.
            self.register_buffer("totals", torch.zeros(2))
            self._sums: Tensor = torch.zeros(2, blocks)

    def weights(self, blocks: Tensor, errors: Tensor, mask: Tensor | None = None) -> Tensor:
        """Which pixels count, and take note of their errors.

        Args:
            blocks: [*] int64, the block of each pixel (`window_blocks`, `pixel_blocks`).
            errors: [*] >= 0.
            mask: [*] how much each pixel counts otherwise, in [0, 1]: errors are not noted where it is 0; None: all do.

        Returns:
            [*] 1 for those that count, 0 for the others; the mask is not in it.
        """
        self._sums = self._sums.to(errors.device)
        flat, values = blocks.reshape(-1), errors.detach().reshape(-1).float()
        shares = torch.ones_like(values) if mask is None else mask.reshape(-1).to(values)
        self._sums[0].index_add_(0, flat, values * shares)
        self._sums[1].index_add_(0, flat, shares)
        if not self.starts:
            return torch.ones_like(errors)
        return (~self.moved[blocks]).to(errors.dtype)

    def before_step(self, progress: float) -> None:
        """Take note of what fraction of the training is done."""
        self.starts = progress >= self.rule.start

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Update the running means with the errors that all processes saw in a step."""
        if not self.is_on:
            return
        both = Processes.current().sum(self._sums.to(self.errors.device))
        (sums, counts), counting = both, both.masked_fill(self.moved, 0) if self.starts else both
        self.totals.lerp_(counting.sum(1), _NEW_TOTALS)
        error, pixels = self.totals
        latest = sums * pixels / (counts * error).clamp_min(_TINY)
        self.errors.lerp_(latest, torch.where(self.errors < 0, 1.0, _NEW) * (counts > 0))
        self._sums.zero_()
        # After the last of several steps whose gradients are averaged, step + 1 is a multiple of their number.
        if (step + 1) % _JUDGED_EVERY == 0:
            self.moved.copy_(outlying(self.errors, self.rule))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Earlier versions kept errors as they were, and their limit: of such a run, what moved is found anew.
        if self.is_on and state_dict.pop(f"{prefix}limit", None) is not None:
            # As many blocks as the state has: a run can be looked at when some of its photographs are gone.
            self.moved = torch.zeros_like(self.errors, dtype=torch.bool)
            unseen, totals = torch.full_like(self.errors, -1.0), torch.zeros_like(self.totals)
            fresh = {"errors": unseen, "moved": self.moved, "totals": totals}
            state_dict |= {f"{prefix}{name}": value for name, value in fresh.items()}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def left_out(self) -> Tensor:
        """Fraction of the blocks that do not count, in [0, 1]; a scalar."""
        return self.moved.float().mean() if self.is_on and self.starts else torch.zeros(())


def outlying(errors: Tensor, rule: MovingRule) -> Tensor:
    """Blocks that with those around them are far above the median.

    Args:
        errors: [N * 32 * 32] running errors, negative where nothing has been seen.
        rule: how far.

    Returns:
        [N * 32 * 32] bool.
    """
    images = errors.view(-1, 1, BLOCKS, BLOCKS)
    seen = (images >= 0).to(errors)
    sums, shares = (
        torch.nn.functional.avg_pool2d(values, 3, stride=1, padding=1).view(-1) for values in (images * seen, seen)
    )
    around = torch.where(shares > 0, sums / shares.clamp_min(_TINY), -1.0)
    typical = typical_error(around)
    return (around > rule.outlier * typical) & (errors > rule.own * typical)


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
