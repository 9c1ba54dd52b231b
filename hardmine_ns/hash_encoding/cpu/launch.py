"""The hash encoding on the CPU: launchers of the Numba kernels, and the autograd.Function around them.

Forward, threads share the points. Backward, each level of the table is written by one thread, so its sums have one
order and need no atomics: the result does not depend on the number of threads. The table's gradient is a sparse
tensor of the rows with a non-zero gradient, in ascending order: its cost follows the points, not the table.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardmine_ns.hash_encoding.cpu import kernels
from hardmine_ns.hash_encoding.cpu.corners import Corners, Level
from hardmine_ns.hash_encoding.cpu.kernels import Array
from hardmine_ns.hash_encoding.levels import ROW_MULTIPLE, GridLevels
from ns_support.concurrency.threads import num_threads, run_on_threads
from ns_support.kernels.simd import LANES

# Level by level over many points, 4 MB of table stay in cache while all of them read it: 1.6 times as fast at 2^16 as
# at 2^10 points. Beyond 2^16 the strided writes to the output take over.
_POINTS_PER_PASS = 1 << 16
# Below this, waking a thread costs more than its chunk of the work saves.
_POINTS_WORTH_A_THREAD = 256
# The same for rows of the gradient to copy.
_ROWS_WORTH_A_THREAD = 1 << 14


def _levels(levels: GridLevels, features: int) -> list[tuple[Level, slice]]:
    """Each level in the kernels' types, with its rows in the table."""
    return [
        (
            Level(
                index * features,
                np.float32(levels.scales[index]),
                np.uint32(levels.resolutions[index]),
                np.uint32(levels.sizes[index]),
                bool(levels.dense[index]),
            ),
            slice(int(levels.offsets[index]), int(levels.offsets[index + 1])),
        )
        for index in range(levels.num_levels)
    ]


def _columns(positions: Array) -> Array:
    """Positions [N, 3] as the kernels take them: [3, N rounded up to a multiple of 16], with zeros behind."""
    columns = np.zeros((3, -(-len(positions) // LANES) * LANES), np.float32)
    columns[:, : len(positions)] = positions.T
    return columns


def _in_chunks(points: int, work: Callable[[int, int], None]) -> None:
    """Call `work(start, stop)` on every thread for its chunk of the points, a pass at a time."""

    def worker(thread: int, threads: int) -> None:
        # Whole vectors, so that no two threads share one.
        vectors = -(-points // LANES)
        stop = min(vectors * (thread + 1) // threads * LANES, points)
        for start in range(vectors * thread // threads * LANES, stop, _POINTS_PER_PASS):
            work(start, min(start + _POINTS_PER_PASS, stop))

    run_on_threads(worker, max(1, min(num_threads(), points // _POINTS_WORTH_A_THREAD)))


def forward(positions: Array, table: Array, levels: GridLevels, output: Array | None = None) -> Array:
    """`reference.encode` for contiguous float32 arrays.

    Args:
        positions: float32 [N, 3].
        table: float32 [levels.total_rows, F].
        levels: geometry of the L levels.
        output: float32 [N, L F], where the result is to go; None: to memory of its own.

    Returns:
        float32 [N, L F].
    """
    features = table.shape[1]
    output = np.empty((len(positions), levels.num_levels * features), np.float32) if output is None else output
    plan, width = _levels(levels, features), (0,) * features
    columns = _columns(positions)

    def work(start: int, stop: int) -> None:
        corners = Corners.new()
        for level, part in plan:
            kernels.forward(columns, corners, table[part], output, level, start, stop, width)

    _in_chunks(len(positions), work)
    return output


def position_gradient(positions: Array, table: Array, levels: GridLevels, cotangent: Array) -> Array:
    """Gradient of sum(cotangent * encoding) with respect to the positions.

    Args:
        positions: float32 [N, 3].
        table: float32 [levels.total_rows, F].
        levels: geometry of the L levels.
        cotangent: float32 [N, L F].

    Returns:
        float32 [N, 3].
    """
    features = table.shape[1]
    gradient, columns = np.zeros_like(positions), _columns(positions)
    plan, width = _levels(levels, features), (0,) * features

    def work(start: int, stop: int) -> None:
        corners = Corners.new()
        for level, part in plan:
            given = (table[part], cotangent, gradient, level)
            kernels.add_position_gradient(columns, corners, *given, start, stop, width)

    _in_chunks(len(positions), work)
    return gradient


class _Scratch(NamedTuple):
    """Where a thread sums one level after the other: small enough to stay in its cache."""

    sums: Array
    """Zero between levels, as `touched` is."""
    touched: Array
    corners: Corners


class TableGradient:
    """Sums a table's gradient in memory that is kept from one backward to the next.

    Fresh memory would cost more than the sums of a mined step. What is kept is zero, or overwritten before it is read.
    """

    def __init__(self, levels: GridLevels, features: int) -> None:
        self._levels = levels
        self._features = features
        self._scratches: list[_Scratch] = []
        self._staging: dict[int, tuple[Array, Array]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[TableGradient], tuple[GridLevels, int]]:
        """Copies and pickles of a module start with memory of their own."""
        return TableGradient, (self._levels, self._features)

    def compute(self, positions: Array, cotangent: Array) -> tuple[Array, Array]:
        """Gradient of sum(cotangent * encoding) with respect to the table.

        Args:
            positions: float32 [N, 3].
            cotangent: float32 [N, L F].

        Returns:
            int64 [K], the rows whose gradient is not zero, ascending; float32 [K, F], their gradients.
        """
        with self._lock:
            return self._gather(self._sum_levels(positions, cotangent))

    def sparse(self, positions: Tensor, cotangent: Tensor) -> Tensor:
        """`compute` for tensors; a sparse tensor of the table's shape."""
        found = self.compute(positions.contiguous().numpy(), cotangent.contiguous().numpy())
        rows, values = map(torch.from_numpy, found)
        shape = (self._levels.total_rows, self._features)
        return torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=True, check_invariants=False)

    def _sum_levels(self, positions: Array, cotangent: Array) -> list[tuple[Array, Array]]:
        """Each level's non-zero rows, counted from its first, and their gradients: views of the staging memory."""
        plan = list(enumerate(_levels(self._levels, self._features)))
        columns, width = _columns(positions), (0,) * self._features
        parts: list[tuple[Array, Array]] = [(np.empty(0), np.empty(0))] * len(plan)
        # Fine levels take longest: started first, they leave the short ones to even out the threads.
        turns = itertools.count()

        def worker(thread: int, threads: int) -> None:
            while (turn := next(turns)) < len(plan):
                index, (level, part) = plan[-1 - turn]
                size = part.stop - part.start
                # Taken out while in use: after an error half-way, its sums must not go to the next backward.
                scratch = self._scratches.pop() if self._scratches else self._new_scratch()
                sums, touched = scratch.sums[:size], scratch.touched[: size // ROW_MULTIPLE]
                rows, values = self._room(index, min(8 * len(positions), size) + 1)
                kernels.add_table_gradient(columns, scratch.corners, cotangent, sums, touched, level, width)
                count = kernels.move_rows(sums, touched, rows, values, width)
                parts[index] = rows[:count], values[:count]
                self._scratches.append(scratch)

        run_on_threads(worker, max(1, min(num_threads(), len(plan), len(positions) // _POINTS_WORTH_A_THREAD)))
        return parts

    def _new_scratch(self) -> _Scratch:
        rows = int(self._levels.sizes.max())
        sums, touched = np.zeros((rows, self._features), np.float32), np.zeros(rows // ROW_MULTIPLE, np.uint8)
        return _Scratch(sums, touched, Corners.new())

    def _room(self, index: int, rows: int) -> tuple[Array, Array]:
        if index not in self._staging or len(self._staging[index][0]) < rows:
            self._staging[index] = np.empty(rows, np.int32), np.empty((rows, self._features), np.float32)
        return self._staging[index]

    def _gather(self, parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
        """The levels' parts, one after the other and counted from the table's first row."""
        stops = np.cumsum([len(rows) for rows, _ in parts])
        all_rows, all_values = np.empty(stops[-1], np.int64), np.empty((stops[-1], self._features), np.float32)

        def copy(thread: int, threads: int) -> None:
            for index in range(thread, len(parts), threads):
                rows, values = parts[index]
                target = slice(stops[index] - len(rows), stops[index])
                np.add(rows, self._levels.offsets[index], out=all_rows[target])
                all_values[target] = values

        run_on_threads(copy, max(1, min(num_threads(), int(stops[-1]) // _ROWS_WORTH_A_THREAD)))
        return all_rows, all_values


# ---- autograd ----


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        positions: Tensor,
        table: Tensor,
        levels: GridLevels,
        table_gradient: TableGradient,
        features: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.levels, ctx.table_gradient = levels, table_gradient
        if features is not None:
            return features.view_as(features)
        return torch.from_numpy(forward(positions.numpy(), table.numpy(), levels))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        positions, table = ctx.saved_tensors
        positions_grad = table_grad = None
        if ctx.needs_input_grad[0]:
            arrays = positions.numpy(), table.detach().numpy(), ctx.levels, cotangent.contiguous().numpy()
            positions_grad = torch.from_numpy(position_gradient(*arrays))
        if ctx.needs_input_grad[1]:
            table_grad = ctx.table_gradient.sparse(positions, cotangent)
        return positions_grad, table_grad, None, None, None


def encode(
    positions: Tensor,
    table: Tensor,
    levels: GridLevels,
    table_gradient: TableGradient,
    features: Tensor | None = None,
) -> Tensor:
    """`reference.encode` on the CPU in float32, differentiable once; the table's gradient is sparse.

    Args:
        positions: float32 [N, 3], in [0, 1]; outside it the grid repeats.
        table: float32 [levels.total_rows, F], contiguous.
        levels: geometry of the L levels.
        table_gradient: the memory in which this table's gradient is summed.
        features: float32 [N, L F], the result, if an earlier pass has computed it: the look-ups are then saved.

    Returns:
        float32 [N, L F].
    """
    output: Tensor = _Encode.apply(positions.contiguous(), table, levels, table_gradient, features)
    return output
