"""Which rays to train: blocks of pixels by how wrong they still are, and by what their rays cost.

Notation: P pixels, all those that may be drawn, in blocks of 8 x 8; n_b of them in block b; e_b its mean squared error
and c_b what one of its rays costs, both as of late; q_r the probability of pixel r. The gradient of the mean loss over
all pixels is estimated without bias from any q > 0 by weighting a drawn pixel by w_r = 1 / (P q_r). At a budget of
samples instead of rays, the variance is least for q_r ~ sqrt(E|G_r|^2 / c_r), G_r being the gradient of the pixel's
loss; for a squared loss e_b stands in for it:

    s_b = sqrt(e_b / c_b),    q_r = (1 - u) s_b / sum_b' n_b' s_b' + u / P,    so that w_r <= 1 / u

    e_b <- e_b + beta (mean error of this step's pixels of b - e_b),    likewise c_b;    the first time, the mean itself

A block that was not drawn yet counts as the mean of those that were. Pixels are drawn by systematic resampling: n
equidistant points with one random shift on the cumulative sum of n_b q_b, which is rebuilt every few steps, then a
pixel within the block, uniformly.

What that is worth at the same cost, in the mean over pixels and compared with drawing uniformly (`gain`), is
mean(e) mean(c) / mean(sqrt(e c))^2 >= 1 if e and c are what they are taken for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hardmine_ns.mining.selection import ALONE
from ns_support.concurrency.processes import Processes
from ns_support.sampling.running import UNIFORM_SHARE, UNKNOWN, mixed, moved, with_means

BLOCK = 8
"""Pixels along the edge of a block."""
_REBUILD_EVERY = 64
"""Steps for which the probabilities hold: over millions of blocks a sum costs as much as a step."""


class BlockMemory(nn.Module):
    """Draws pixels of all training images, and remembers how wrong they were.

    Buffers, saved in checkpoints: `errors` and `costs` [blocks], -1 where none of a block's pixels was drawn yet. With
    them goes what is drawn by at the time. Those of other images than the present ones are left out when a checkpoint
    is loaded: the memory then begins anew.

    Example:
        >>> memory = BlockMemory([(16, 24), (8, 8)])
        >>> pixels = memory.draw(5)  # [5, 3]: image, row, column
        >>> memory.weights(pixels)  # nothing is known yet: all alike
        tensor([1., 1., 1., 1., 1.])
    """

    errors: Tensor
    costs: Tensor

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        masks: Sequence[Tensor] | None = None,
        *,
        uniform_share: float = UNIFORM_SHARE,
        weight_power: float = 1.0,
        processes: Processes = ALONE,
    ) -> None:
        """Count each block's pixels.

        Args:
            sizes: rows and columns of each image.
            masks: for each image [H, W] or [H, W, 1], non-zero where pixels may be drawn; None for everywhere.
            uniform_share: u in (0, 1]; 1 draws uniformly.
            weight_power: weights are w^this: 1 is without bias, 0 leaves the bias towards what is wrong (instant-ngp).
            processes: that train together: each draws by itself, and all learn from what all have drawn.

        Raises:
            ValueError: if a setting is out of its range, or the masks hide every pixel.
        """
        super().__init__()
        if not 0 < uniform_share <= 1 or not 0 <= weight_power <= 1:
            raise ValueError(
                f"uniform share must be in (0, 1] and weight power in [0, 1], got {uniform_share} and {weight_power}"
            )
        self.uniform_share, self.weight_power, self.processes = uniform_share, weight_power, processes
        heights, widths = (torch.tensor(x, dtype=torch.int64) for x in zip(*sizes, strict=True))
        self._heights, self._widths = heights, widths
        self._columns = (widths + BLOCK - 1) // BLOCK
        blocks = self._columns * ((heights + BLOCK - 1) // BLOCK)
        self._block_ends, areas = blocks.cumsum(0), heights * widths
        self._block_starts = self._block_ends - blocks
        self._pixel_starts = areas.cumsum(0) - areas
        self._shown = None if masks is None else torch.cat([mask.reshape(-1).cpu() != 0 for mask in masks])
        self._counts = self._pixels_of_blocks()
        self.num_pixels = int(self._counts.sum())
        if self.num_pixels == 0:
            raise ValueError("the masks hide every pixel")
        self.register_buffer("errors", torch.full((int(blocks.sum()),), UNKNOWN))
        self.register_buffer("costs", torch.full((int(blocks.sum()),), UNKNOWN))
        self.gain = 1.0
        self._age = 0
        self._chance: Tensor | None = None

    def draw(self, number: int) -> Tensor:
        """Draw pixels, with replacement.

        Args:
            number: of pixels n.

        Returns:
            [n, 3] int64 on the CPU: image, row, column; in the order of blocks.
        """
        cumulative = self._probabilities()[1]
        points = (torch.arange(number, dtype=torch.float64) + torch.rand((), dtype=torch.float64)) / max(number, 1)
        # Right: never a block without pixels, whose entry is no larger than the one before it.
        block = torch.searchsorted(cumulative, points * cumulative[-1], right=True).clamp(max=self._last_block)
        corner = self._corners(block)
        if self._shown is not None:
            return self._shown_pixels(corner)
        height = torch.minimum(self._heights[corner[:, 0]] - corner[:, 1], torch.tensor(BLOCK))
        width = torch.minimum(self._widths[corner[:, 0]] - corner[:, 2], torch.tensor(BLOCK))
        place = torch.rand(number, 2, dtype=torch.float64)
        within = torch.stack([torch.zeros_like(height), (place[:, 0] * height).long(), (place[:, 1] * width).long()], 1)
        return corner + within

    def weights(self, pixels: Tensor) -> Tensor:
        """Factors [n] float32 on the losses of drawn pixels [n, 3], on the CPU: w^power."""
        block = self.blocks_of(pixels)
        chance = self._probabilities()[0][block] / self._counts[block]
        return (self.num_pixels * chance).reciprocal().pow(self.weight_power).float()

    @torch.no_grad()
    def learn(self, pixels: Tensor, errors: Tensor, costs: Tensor) -> None:
        """Remember what a step found.

        Args:
            pixels: [n, 3] int64, those that were drawn.
            errors: [n] squared error of each; what is not finite is not remembered.
            costs: [n] > 0, what each ray cost, in any unit.
        """
        block = self.processes.gather(self.blocks_of(pixels))
        found = self.processes.gather(torch.stack([errors.cpu().float(), costs.cpu().float()], 1))
        block, found = block[found.isfinite().all(1)], found[found.isfinite().all(1)]
        touched, place, times = block.unique(return_inverse=True, return_counts=True)
        means = found.new_zeros(len(touched), 2).index_add_(0, place, found) / times[:, None]
        for memory, new in zip((self.errors, self.costs), means.unbind(1), strict=True):
            memory[touched] = moved(memory[touched], new)
        self._age += 1
        if self._age >= _REBUILD_EVERY:
            self._chance = None

    def blocks_of(self, pixels: Tensor) -> Tensor:
        """Numbers [n] of the blocks of pixels [n, 3], on the CPU."""
        image, row, column = pixels.cpu().unbind(-1)
        return self._block_starts[image] + row // BLOCK * self._columns[image] + column // BLOCK

    def _probabilities(self) -> tuple[Tensor, Tensor]:
        """n_b q_b [blocks], which sum to 1, and its cumulative sum, float64."""
        if self._chance is None:
            counts = self._counts.double()
            error, cost = (with_means(memory, self._counts) for memory in (self.errors, self.costs))
            wanted = counts * (error / cost.clamp(min=1e-12)).sqrt()
            even = counts / self.num_pixels
            self._hold(mixed(wanted, even, self.uniform_share))
            root = float((even * (error * cost).sqrt()).sum())
            self.gain = float((even * error).sum() * (even * cost).sum()) / root**2 if root > 0 else 1.0
            self._age = 0
        assert self._chance is not None
        return self._chance, self._cumulative

    def _hold(self, chance: Tensor) -> None:
        """Draw by these probabilities [blocks] from now on."""
        self._chance, self._cumulative = chance, chance.cumsum(0)
        self._last_block = int(torch.nonzero(self._counts)[-1])

    def _corners(self, block: Tensor) -> Tensor:
        """First pixel [n, 3] of blocks [n]."""
        image = torch.searchsorted(self._block_ends, block, right=True)
        within, columns = block - self._block_starts[image], self._columns[image]
        return torch.stack([image, within // columns * BLOCK, within % columns * BLOCK], 1)

    def _members(self, corners: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows and columns [n, 64] of blocks' pixels, which exist, and their numbers among all images' (0 if not)."""
        along = torch.arange(BLOCK)
        rows = corners[:, 1, None] + along.repeat_interleave(BLOCK)
        columns = corners[:, 2, None] + along.repeat(BLOCK)
        height, width = self._heights[corners[:, 0], None], self._widths[corners[:, 0], None]
        exists = (rows < height) & (columns < width)
        return rows, columns, exists, (self._pixel_starts[corners[:, 0], None] + rows * width + columns) * exists

    def _shown_pixels(self, corners: Tensor) -> Tensor:
        """One of the pixels that the masks show, of each block [n, 3] -> [n, 3]."""
        assert self._shown is not None
        rows, columns, exists, number = self._members(corners)
        chosen = (torch.rand(rows.shape) + 1).mul_(exists & self._shown[number]).argmax(1, keepdim=True)
        return torch.cat([corners[:, :1], rows.gather(1, chosen), columns.gather(1, chosen)], 1)

    def _pixels_of_blocks(self) -> Tensor:
        """[blocks] int64: how many pixels of each may be drawn."""
        corners = self._corners(torch.arange(int(self._block_ends[-1])))
        if self._shown is None:
            height = (self._heights[corners[:, 0]] - corners[:, 1]).clamp(max=BLOCK)
            return height * (self._widths[corners[:, 0]] - corners[:, 2]).clamp(max=BLOCK)
        shown = self._shown
        parts = (self._members(part)[2:] for part in corners.split(1 << 14))
        return torch.cat([(exists & shown[number]).sum(1) for exists, number in parts])

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Whoever goes on from here draws by the same probabilities for as long. Saving may go by the clock: it changes
        # nothing here.
        if self._chance is not None:
            destination[f"{prefix}chance"] = self._chance
            destination[f"{prefix}held"] = torch.tensor([self._age, self.gain], dtype=torch.float64)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        found = [state_dict.pop(prefix + name, None) for name in ("errors", "costs")]
        chance, held = (state_dict.pop(prefix + name, None) for name in ("chance", "held"))
        shapes = {None if saved is None else saved.shape for saved in found}
        if len(shapes | ({chance.shape} if chance is not None else set())) > 1:
            rest[-1].append(f"{prefix}errors, costs and chance are not of one size.")  # PyTorch's list of errors
        for memory, saved in zip((self.errors, self.costs), found, strict=True):
            fits = saved is not None and saved.shape == memory.shape
            memory.copy_(saved) if fits else memory.fill_(UNKNOWN)
        self._chance = None
        if chance is not None and held is not None and chance.shape == self.errors.shape:
            self._hold(chance.detach().cpu().double().clone())
            self._age, self.gain = int(held[0]), float(held[1])
