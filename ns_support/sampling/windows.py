"""Which window of an image to train: by how wrong the image still is there.

Each image is divided into B x B blocks, at the same places whatever resolution it is used at. Remembered of block b are
running means over its pixels: e_b of the error times what the pixel counts, k_b of what it counts, both in [0, inf) and
[0, 1]. What a window's loss will be, a mean over the pixels that count, follows from the parts a_b that it has of the
blocks. Of the W windows of an image one is drawn with probability q:

    l_w = sum_b a_b e_b / sum_b a_b k_b
    q_w = (1 - u) sqrt(l_w) / sum_v sqrt(l_v) + u / W,    weight 1 / (W q_w) <= 1 / u

so that the gradient of the weighted loss is in the mean that of all the image's windows, whatever is remembered.
Windows that begin near each other share a q: l is computed for the middle of at most 32 x 32 groups of them. All have
the same number of pixels; that some take longer than others is left out, as seconds are not the same in another run.

Which image comes next is not chosen here: all are used once before any is used again, which varies less than a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ns_support.concurrency.processes import Processes
from ns_support.kernels.later import Later
from ns_support.sampling.running import UNIFORM_SHARE, UNKNOWN, mixed, moved, with_means

BLOCKS = 16
"""Blocks along each side of an image: B."""
_GROUPS = 32
"""Groups of windows along each side, at most."""
_WIDTH = 1 + 3 * BLOCKS**2
"""Numbers of an image in a report: its number plus 1 (0: no image), and of each block the sum of errors, the sum of
what pixels count, and how many there are."""
_DAMAGED = "pending is not what a memory of windows keeps: the checkpoint was altered."


class WindowMemory(nn.Module):
    """Draws windows of N images and remembers how wrong they were.

    What a step finds is known one step after the next has begun (`Later`), on a CPU too: no step waits for a GPU, and
    both draw by the same rule. The memory is on the host, and in the state on the model's device, where processes
    compare it: "memory" [2, N, B, B], e and k, and "pending", reports that are not in it yet. A state without them
    leaves the memory as it is; with one of other images, it begins anew.

    Attributes:
        is_on: whether windows are drawn here and anything is remembered; otherwise the state is empty.
        memory: [2, N, B, B] on the CPU, -1 where nothing was seen.

    Example:
        >>> memory = WindowMemory(True, [(200, 300)])
        >>> memory.memory[:] = 1.0
        >>> memory.memory[0, 0, :, 8:] = 9.0  # the right half is wrong
        >>> window, weight = memory.draw(0, 1, (64, 64), torch.Generator().manual_seed(0))
        >>> window[2:], 0.5 < weight < 5
        ((64, 64), True)
    """

    _device: Tensor

    def __init__(self, is_on: bool, sizes: Sequence[tuple[int, int]], uniform_share: float = UNIFORM_SHARE) -> None:
        """Remember nothing yet.

        Args:
            is_on: as above; never without images.
            sizes: rows and columns of each image as it is, before it is reduced.
            uniform_share: u in (0, 1].

        Raises:
            ValueError: if the uniform share is out of its range.
        """
        super().__init__()
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform share must be in (0, 1], got {uniform_share}")
        self.is_on, self.sizes, self.uniform_share = is_on and len(sizes) > 0, list(sizes), uniform_share
        self.register_buffer("_device", torch.zeros(0), persistent=False)  # goes where the model goes
        self.memory = torch.full((2, len(sizes) if self.is_on else 0, BLOCKS, BLOCKS), UNKNOWN)
        self._later = Later()
        self._report: Tensor | None = None
        self._pending: Tensor | None = None

    def draw(
        self, photo: int, factor: int, extent: tuple[int, int], generator: torch.Generator
    ) -> tuple[tuple[int, int, int, int], float]:
        """Draw a window of an image.

        Args:
            photo: number of the image.
            factor: of its reduction, >= 1: rows and columns are those of `sizes` divided by it, rounded down.
            extent: rows and columns of the window, at most those of the reduced image.
            generator: on the CPU.

        Returns:
            First row, first column, rows, columns; and the weight of its loss.
        """
        rows, columns = extent
        starts = [_groups(side // factor - part + 1) for side, part in zip(self.sizes[photo], extent, strict=True)]
        counts = starts[0].diff()[:, None] * starts[1].diff()
        even = counts.double() / counts.sum()
        chance = mixed(even * self._losses(photo, factor, extent, starts).sqrt(), even, self.uniform_share)
        group = int(torch.multinomial(chance.flatten(), 1, generator=generator))
        top, left = (
            int(torch.randint(int(start[at]), int(start[at + 1]), (), generator=generator))
            for start, at in zip(starts, divmod(group, len(starts[1]) - 1), strict=True)
        )
        return (top, left, rows, columns), float(even.flatten()[group] / chance.flatten()[group])

    def _losses(self, photo: int, factor: int, extent: tuple[int, int], starts: list[Tensor]) -> Tensor:
        """Loss l of the window in the middle of each group, [groups down, groups across]."""
        parts = [
            _overlaps(start, part, factor * BLOCKS / side)
            for start, part, side in zip(starts, extent, self.sizes[photo], strict=True)
        ]
        everywhere = torch.ones(())
        errors, kept = (parts[0] @ with_means(each, everywhere)[photo] @ parts[1].T for each in self.memory)
        return torch.where(kept > 0, errors / kept, 0.0)

    @torch.no_grad()
    def note(
        self,
        photo: int,
        window: tuple[int, int, int, int],
        factor: int,
        errors: Tensor,
        mask: Tensor | None = None,
        place: tuple[int, int] = (0, 1),
    ) -> None:
        """Take note of an image's errors in a step.

        Args:
            photo: number of the image.
            window: first row, first column, rows h, columns w.
            factor: of its reduction.
            errors: [h, w] >= 0.
            mask: [h, w] or [h, w, 1] how much each pixel counts; None: 1.
            place: of the image among those of the step in all processes, and their number.
        """
        device, (height, width), (top, left, rows, columns) = errors.device, self.sizes[photo], window
        if self._report is None or self._report.device != device or len(self._report) != place[1]:
            self._report = torch.zeros(place[1], _WIDTH, device=device)
        down = torch.arange(top, top + rows, device=device) * (factor * BLOCKS) // height
        across = torch.arange(left, left + columns, device=device) * (factor * BLOCKS) // width
        ones = torch.ones_like(errors, dtype=torch.float32)
        counts = ones if mask is None else mask.reshape(errors.shape).to(ones)
        values = torch.stack([errors.float() * counts, counts, ones]).flatten(1)
        report = self._report[place[0]]
        report[:1].fill_(photo + 1)
        report[1:].view(3, -1).index_add_(1, (down[:, None] * BLOCKS + across).flatten(), values)

    def after_step(self, processes: Processes) -> None:
        """Learn what the step before has found, and send what this one has, to all processes.

        Args:
            processes: that train together; all of them must call this.
        """
        self._learn()
        if self._report is not None:
            self._later.send(processes.sum(self._report).flatten())
            self._report.zero_()

    def _learn(self) -> None:
        self._receive()
        pending, self._pending = self._pending, None
        for report in () if pending is None else pending:
            photo = int(report[0]) - 1
            if photo < 0:
                continue
            errors, kept, counts = report[1:].view(3, BLOCKS, BLOCKS)
            # What is not finite is not remembered.
            seen = (counts > 0) & errors.isfinite() & kept.isfinite()
            for memory, sums in zip(self.memory[:, photo], (errors, kept), strict=True):
                memory.copy_(torch.where(seen, moved(memory, sums / counts.clamp_min(1)), memory))

    def _receive(self) -> None:
        """Have on the host what was sent."""
        found = self._later.read()
        if found is not None:
            self._pending = torch.tensor(found).view(-1, _WIDTH)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.is_on:
            return
        self._receive()  # and does not learn: saving may go by the clock, and changes nothing here
        destination[f"{prefix}memory"] = self.memory.to(self._device.device)
        if self._pending is not None:
            destination[f"{prefix}pending"] = self._pending.to(self._device.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        memory, pending = (state_dict.pop(prefix + name, None) for name in ("memory", "pending"))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if memory is None:  # nerfstudio's pipeline loads what is not the model's apart, and asks the model again
            return
        fits = self.is_on and memory.shape == self.memory.shape
        self._later, self._pending, self._report = Later(), None, None
        self.memory.copy_(memory) if fits else self.memory.fill_(UNKNOWN)
        if not fits or pending is None:
            return
        if pending.ndim != 2 or pending.shape[1] != _WIDTH or not bool((pending[:, 0] <= len(self.sizes)).all()):
            rest[-1].append(f"{prefix}{_DAMAGED}")  # PyTorch's list of errors
        else:
            self._pending = pending.detach().float().cpu().clone()


def _groups(number: int) -> Tensor:
    """Where groups of so many windows begin and end: [groups + 1] int64, from 0 to the number."""
    groups = min(_GROUPS, number)
    return torch.arange(groups + 1) * number // groups


def _overlaps(starts: Tensor, part: int, scale: float) -> Tensor:
    """How much of each block the window in the middle of each group has, along one side: [groups, B], in blocks.

    Args:
        starts: [groups + 1] of groups.
        part: rows or columns of a window.
        scale: blocks in a row or column of the reduced image.
    """
    first = (starts[:-1] + starts[1:] - 1).double()[:, None] * (0.5 * scale)
    blocks = torch.arange(BLOCKS, dtype=torch.float64)
    return (torch.minimum(first + part * scale, blocks + 1) - torch.maximum(first, blocks)).clamp_min(0)
