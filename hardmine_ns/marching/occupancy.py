"""The occupancy grid: where samples are worth their cost.

Instant-NGP's rule as nerfacc states it: a cell remembers the optical thickness of one step (density times step size),
decays, and counts as occupied while it exceeds min(mean over the cells, threshold).

The difference is what an update costs. Querying every cell, as both do at first, takes seconds to minutes per update on
a CPU. Here the cells that rays pass through cost nothing: training has just computed densities there. For the others a
fixed number of cells is queried in each update, in an order that visits each cell once before it visits any twice and
spreads over the whole grid. A cell never visited counts as occupied, so that no part of the scene is lost before it was
looked at. With `blocks_first`, the first time around a cell also stands for its neighbours in a block of 2 x 2 x 2 that
were never visited, until it is their turn: the fog of a new scene lifts after a quarter of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hardmine_ns.marching.cpu import occupancy as cpu
from ns_support.concurrency.processes import Processes

_GOLDEN = 0.6180339887498949
_UNVISITED = -1.0


class OccupancyGrid(nn.Module):
    """Nested boxes of voxels around one centre, each box twice the size of the one before.

    Buffers, all saved in checkpoints: `center`, `half_extent` [3] (of the innermost box, scene units), `thickness`
    [levels x resolution^3] (-1: never visited), `binaries` [levels, resolution, resolution, resolution] bool, `cursor`
    (cells the sweep has visited).
    """

    center: Tensor
    half_extent: Tensor
    thickness: Tensor
    binaries: Tensor
    cursor: Tensor

    def __init__(
        self,
        aabb: Tensor,
        resolution: int = 128,
        levels: int = 1,
        threshold: float = 0.01,
        decay: float = 0.95,
        blocks_first: bool = False,
    ) -> None:
        """Start with every cell occupied.

        Args:
            aabb: [6] or [2, 3]: least and greatest corner of the innermost box, scene units.
            resolution: voxels per edge, >= 1; with more than one level a multiple of 4, so that boxes nest on voxels.
            levels: number of boxes, 1 to 8.
            threshold: greatest optical thickness of one step that may count as empty, > 0.
            decay: factor on a cell's memory at each visit, in [0, 1).
            blocks_first: whether a cell stands for its neighbours during the first sweep.

        Raises:
            ValueError: if an argument is out of its range.
        """
        super().__init__()
        corners = aabb.detach().to(torch.float32).reshape(2, 3)
        if not bool((corners[1] > corners[0]).all()):
            raise ValueError(f"aabb must have its least corner first and a positive size, got {corners.tolist()}")
        if resolution < 1 or not 1 <= levels <= 8 or (levels > 1 and resolution % 4):
            raise ValueError(
                f"resolution must be >= 1 (a multiple of 4 with several levels) and levels 1 to 8, "
                f"got {resolution} and {levels}"
            )
        self.resolution, self.levels, self.threshold, self.decay = resolution, levels, threshold, decay
        self.blocks_first = blocks_first and resolution % 2 == 0
        cells = levels * resolution**3
        self.register_buffer("center", (corners[0] + corners[1]) / 2)
        self.register_buffer("half_extent", (corners[1] - corners[0]) / 2)
        self.register_buffer("thickness", torch.full((cells,), _UNVISITED))
        self.register_buffer("binaries", torch.ones(levels, resolution, resolution, resolution, dtype=torch.bool))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self._stride = _coprime_near(round(cells * _GOLDEN), cells)
        self._mean: float | None = None
        self._mean_there: Tensor | None = None

    @property
    def num_cells(self) -> int:
        """Cells of all levels together."""
        return self.thickness.numel()

    @torch.no_grad()
    def update(
        self,
        thickness_fn: Callable[[Tensor], Tensor],
        num_cells: int,
        observed: tuple[Tensor, Tensor] | Tensor | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Visit some cells and decide anew which are occupied.

        Args:
            thickness_fn: maps positions [n, 3] to the optical thickness of a step there, [n].
            num_cells: cells to query, taken from the sweep over all cells: the bound of the cost.
            observed: positions [m, 3] and the optical thickness there [m], where they are known anyway; or [cells] the
                greatest that was seen in each cell, -1 where nothing was: of a single process, and without
                `blocks_first`.
            processes: that hold the same grid: they divide the cells to query, and each learns what all have found.
        """
        processes = processes or Processes()
        visited = self._next_of_sweep(min(num_cells, self.num_cells))[processes.rank :: processes.size]
        found = thickness_fn(self.random_positions(visited)).reshape(-1).to(self.thickness.dtype)
        if isinstance(observed, Tensor):
            self._note(observed.scatter_reduce(0, visited, found.nan_to_num(), "amax"))
            self._decide()
            return
        if observed is not None:
            cells, values = self._inside(*observed, visited[0])
            visited, found = torch.cat([visited, cells]), torch.cat([found, values.to(found.dtype)])
        visited, found = processes.gather(visited), processes.gather(found)
        self.thickness[visited] = self.thickness[visited] * self.decay
        found = found.nan_to_num()
        self.thickness.scatter_reduce_(0, visited, found, "amax")
        if self.blocks_first and self.cursor < self.num_cells:
            self._tell_neighbours(visited, found)
        self._decide()

    def random_positions(self, cells: Tensor) -> Tensor:
        """One uniformly drawn point [n, 3] in each of the given cells [n]."""
        r = self.resolution
        level = cells // r**3
        corner = torch.stack([cells // r**2 % r, cells // r % r, cells % r], dim=-1)
        unit = (corner + torch.rand(corner.shape, device=cells.device)) * (2.0 / r) - 1.0
        return self.center + unit * torch.exp2(level.to(unit.dtype))[:, None] * self.half_extent

    @property
    def mean_thickness(self) -> float:
        """Mean over the cells visited so far; 0 before the first visit.

        Kept between updates: over some million cells it costs as much as a training step.
        """
        if self._mean is None:
            self._mean = mean_of_visited(self.thickness)
        return self._mean

    def mean_there(self) -> Tensor:
        """The same [] on the grid's device: on a GPU, without waiting for it."""
        if self._mean_there is None or self._mean_there.device != self.thickness.device:
            self._mean_there = _mean_of_visited(self.thickness)
        return self._mean_there

    def _next_of_sweep(self, count: int) -> Tensor:
        # Multiples of a number coprime to the size visit every cell once; one near the golden ratio spreads them.
        index = (self.cursor + torch.arange(count, device=self.cursor.device)) % self.num_cells
        self.cursor += count
        return index * self._stride % self.num_cells

    def _note(self, seen: Tensor) -> None:
        """Remember the thickness [cells] that was seen, -1 where nothing was."""
        self.thickness.copy_(torch.where(seen < 0, self.thickness, torch.maximum(self.thickness * self.decay, seen)))

    def _tell_neighbours(self, visited: Tensor, found: Tensor) -> None:
        """Let cells stand for those of their 2 x 2 x 2 that were never visited, by the densest of them."""
        r = self.resolution
        first = visited - visited // r**2 % r % 2 * r**2 - visited // r % r % 2 * r - visited % r % 2
        steps = torch.arange(2, device=visited.device)
        around = (steps[:, None, None] * r**2 + steps[:, None] * r + steps).reshape(-1)
        cells = (first[:, None] + around).reshape(-1)
        unknown = torch.nonzero(self.thickness[cells] < 0)[:, 0]
        self.thickness.scatter_reduce_(0, cells[unknown], found.repeat_interleave(8)[unknown], "amax")

    def _inside(self, positions: Tensor, values: Tensor, visited: Tensor) -> tuple[Tensor, Tensor]:
        """Cells of the positions that are in the grid, and their values.

        On a GPU, for whose number of positions the host would wait, the others count as very thin spots of a cell that
        is visited anyway.
        """
        cells, inside = locate(positions, self)
        if _has_kernels(self.thickness):
            return cells[inside], values[inside]
        return torch.where(inside, cells, visited), torch.where(inside, values, -torch.inf)

    def _decide(self) -> None:
        self._mean, self._mean_there = None, None
        if self.thickness.is_cuda:
            self._decide_there()
        elif not mark_occupied(self.thickness, min(self.mean_thickness, self.threshold), self.binaries):
            # Nothing would ever be sampled again, and so nothing learnt. Look at every cell anew.
            self.thickness.fill_(_UNVISITED)
            self._mean = None
            self.binaries.fill_(True)

    def _decide_there(self) -> None:
        """The same in one expression for both cases: to know which it is, the host would wait for the GPU."""
        limit = _mean_of_visited(self.thickness).clamp(max=self.threshold)
        occupied = (self.thickness > limit) | (self.thickness < 0)
        some = occupied.any()
        self.thickness.copy_(torch.where(some, self.thickness, _UNVISITED))
        self.binaries.copy_((occupied | ~some).view_as(self.binaries))

    def _load_from_state_dict(self, *args: Any) -> None:
        self._mean, self._mean_there = None, None
        super()._load_from_state_dict(*args)


def locate(positions: Tensor, grid: OccupancyGrid) -> tuple[Tensor, Tensor]:
    """Find each point's voxel in the smallest box that holds it.

    Args:
        positions: [..., 3] float32, scene units.
        grid: on the same device.

    Returns:
        (cells [...] int64 indices into the flattened grid, 0 where outside; inside [...] bool).
    """
    unit = (positions - grid.center) * grid.half_extent.reciprocal()
    reach = unit.abs().amax(-1)
    level = torch.zeros_like(reach, dtype=torch.int64)
    for i in range(grid.levels):
        level += reach >= 2.0**i
    inside = level < grid.levels
    level = level.clamp(max=grid.levels - 1)
    r = grid.resolution
    scaled = (unit * torch.exp2(-level.to(unit.dtype))[..., None] * 0.5 + 0.5) * r
    x, y, z = scaled.nan_to_num().clamp(0, r - 1).to(torch.int64).unbind(-1)
    return (((level * r + x) * r + y) * r + z) * inside, inside


def mean_of_visited(thickness: Tensor) -> float:
    """Mean over the cells [n] whose thickness is not negative; 0 if there are none."""
    if _has_kernels(thickness):
        return cpu.mean_of_visited(thickness)
    return float(_mean_of_visited(thickness))


def _mean_of_visited(thickness: Tensor) -> Tensor:
    visited = thickness >= 0
    return (thickness * visited).sum() / visited.sum().clamp(min=1)


def mark_occupied(thickness: Tensor, limit: float, binaries: Tensor) -> bool:
    """Mark the cells that are thicker than a limit or were never visited.

    Args:
        thickness: [n], negative where a cell was never visited.
        limit: optical thickness of one step.
        binaries: bool, n entries in any shape: written to.

    Returns:
        Whether there are any.
    """
    if _has_kernels(thickness) and binaries.is_contiguous():
        return cpu.mark_occupied(thickness, limit, binaries)
    occupied = (thickness > limit) | (thickness < 0)
    binaries.copy_(occupied.view_as(binaries))
    return bool(occupied.any())


def _has_kernels(thickness: Tensor) -> bool:
    return thickness.device.type == "cpu" and thickness.dtype == torch.float32


def _coprime_near(number: int, size: int) -> int:
    number = max(number, 1)
    while math.gcd(number, size) != 1:
        number += 1
    return number
