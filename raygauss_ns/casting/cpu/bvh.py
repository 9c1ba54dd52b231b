"""Bounding volume hierarchy over the Gaussians' supports: a tree of blocks of 16 boxes, one SIMD vector wide.

The support of Gaussian l is where sigma G_l(x) > eps: the ellipsoid |A (x - mu)| < k, with the squared cutoff radius
k^2 = 2 ln(sigma / eps). Its bounding box has half extents h_i = k sqrt(sum_j (R_ij s_j)^2) =
k sqrt(sum_j A_ji^2 / |A_j|^4), A_j the rows of A. A is the whitening matrix, an inverse square root of the covariance.

Construction takes linear time: the 30-bit Morton codes of the centres are radix-sorted, 16 successive supports form a
block, 16 successive blocks form a block of the next level, up to a single block at the top. A traversal tests the 16
boxes of a block at once. The position of a block's children follows from its number: no pointers are stored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from ns_support.kernels.arrays import FloatArray, IntArray

RECORD_SIZE = 16
"""Floats of a record: mean 3, A 9 (row by row), peak density 1, colour 3: one 64-byte cache line."""

WIDTH = 16
"""Children of a block: the lanes of a vector (see `simd`)."""

MAX_LEVELS = 7
"""Levels at most: 16^7 Gaussians."""

_NOWHERE = np.float32(3e38)  # lower corner of a missing child's box; its upper corner is the negative


class Bvh(NamedTuple):
    """The BVH as flat arrays: M Gaussians above the density cutoff, of N.

    Attributes:
        order: [M] int32, index of each record's Gaussian among the N.
        records: [M, 16] float32, in leaf order: mean, A, peak density, colour.
        squared_cutoff: [M] float32, squared cutoff radius k^2 in units of the standard deviation.
        boxes: [blocks, 6, 16] float32: x, y and z of the 16 children's lower corners, then of their upper corners.
            Level 0, whose children are the records, comes first; child i of block b in level l is block 16 b + i of
            level l - 1.
        levels: [levels + 1] int32, the first block of each level, and the number of blocks.
        bounds: [6] float32, lower and upper corner of everything.
    """

    order: IntArray
    records: FloatArray
    squared_cutoff: FloatArray
    boxes: FloatArray
    levels: IntArray
    bounds: FloatArray


def build_bvh(
    means: FloatArray, whitenings: FloatArray, densities: FloatArray, colors: FloatArray, density_threshold: float
) -> Bvh:
    """Build the BVH over the Gaussians whose density exceeds the cutoff.

    A Gaussian with a value that is not finite is culled, as if its density were 0.

    Args:
        means: [N, 3] centres mu.
        whitenings: [N, 3, 3] A = diag(1/s) R^T.
        densities: [N] peak densities sigma (1/length).
        colors: [N, 3].
        density_threshold: density cutoff eps > 0, below which a Gaussian's density counts as zero (1/length).

    Returns:
        The BVH; all its arrays are empty if every Gaussian is culled.
    """
    alive, lower, upper, squared_cutoff = _supports(means, whitenings, densities, colors, density_threshold)
    rank = _sorted_order(_morton_codes(means[alive]))
    order = alive[rank]
    records = _records(order, means, whitenings, densities, colors)
    boxes, levels, bounds = _build_blocks(lower[rank], upper[rank])
    return Bvh(order, records, squared_cutoff[rank], boxes, levels, bounds)


@njit(cache=True, nogil=True)
def _records(
    order: IntArray, means: FloatArray, whitenings: FloatArray, densities: FloatArray, colors: FloatArray
) -> FloatArray:
    records = np.empty((len(order), RECORD_SIZE), np.float32)
    for m in range(len(order)):
        g = order[m]
        for i in range(3):
            records[m, i] = means[g, i]
            for j in range(3):
                records[m, 3 + 3 * i + j] = whitenings[g, i, j]
            records[m, 13 + i] = colors[g, i]
        records[m, 12] = densities[g]
    return records


@njit(cache=True, nogil=True)
def _supports(
    means: FloatArray, whitenings: FloatArray, densities: FloatArray, colors: FloatArray, density_threshold: float
) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
    """Indices, bounding boxes and squared cutoff radii of the Gaussians that are not culled."""
    n = len(densities)
    alive = np.empty(n, np.int32)
    lower = np.empty((n, 3), np.float32)
    upper = np.empty((n, 3), np.float32)
    squared_cutoff = np.empty(n, np.float32)
    count = 0
    for g in range(n):
        if not densities[g] > density_threshold:
            continue
        squared_radius = 2.0 * np.log(np.float64(densities[g]) / density_threshold)
        finite = np.isfinite(squared_radius) and np.isfinite(colors[g].sum()) and squared_radius > 0.0
        for i in range(3):
            variance = 0.0
            for j in range(3):
                row = whitenings[g, j]
                norm2 = np.float64(row[0]) ** 2 + np.float64(row[1]) ** 2 + np.float64(row[2]) ** 2
                variance += (row[i] / norm2) ** 2 if norm2 > 0.0 else np.inf
            # Padded by more than float32's rounding error: the box never cuts what the exact test would keep.
            half = np.sqrt(squared_radius * variance) * (1.0 + 1e-4) + 1e-6 * (1.0 + abs(means[g, i]))
            lower[count, i] = means[g, i] - half
            upper[count, i] = means[g, i] + half
            finite = finite and np.isfinite(lower[count, i]) and np.isfinite(upper[count, i])
        if finite:
            alive[count] = g
            squared_cutoff[count] = squared_radius
            count += 1
    return alive[:count].copy(), lower[:count].copy(), upper[:count].copy(), squared_cutoff[:count].copy()


@njit(cache=True, nogil=True)
def _morton_codes(points: FloatArray) -> npt.NDArray[np.uint32]:
    """30-bit Morton codes [M]: 10 bits per axis, interleaved, on the points' own bounding box."""
    lower = np.full(3, np.inf, np.float32)
    upper = np.full(3, -np.inf, np.float32)
    for m in range(len(points)):
        for i in range(3):
            lower[i] = min(lower[i], points[m, i])
            upper[i] = max(upper[i], points[m, i])
    codes = np.empty(len(points), np.uint32)
    for m in range(len(points)):
        code = np.uint32(0)
        for i in range(3):
            extent = upper[i] - lower[i]
            cell = (points[m, i] - lower[i]) / extent * np.float32(1023.0) if extent > 0.0 else np.float32(0.0)
            bits = np.uint32(cell)
            for b in range(10):
                code |= ((bits >> np.uint32(b)) & np.uint32(1)) << np.uint32(3 * b + i)
        codes[m] = code
    return codes


@njit(cache=True, nogil=True)
def _sorted_order(codes: npt.NDArray[np.uint32]) -> IntArray:
    """Indices of the codes in ascending order: a stable radix sort in three passes of 10 bits."""
    n = len(codes)
    keys, rank = codes.copy(), np.arange(n).astype(np.int32)
    next_keys, next_rank = np.empty_like(keys), np.empty_like(rank)
    for digit in range(3):
        shift = np.uint32(10 * digit)
        starts = np.zeros(1025, np.int64)
        for m in range(n):
            starts[((keys[m] >> shift) & np.uint32(1023)) + 1] += 1
        for bucket in range(1024):
            starts[bucket + 1] += starts[bucket]
        for m in range(n):
            bucket = (keys[m] >> shift) & np.uint32(1023)
            next_keys[starts[bucket]] = keys[m]
            next_rank[starts[bucket]] = rank[m]
            starts[bucket] += 1
        keys, next_keys = next_keys, keys
        rank, next_rank = next_rank, rank
    return rank


@njit(cache=True, nogil=True)
def _build_blocks(lower: FloatArray, upper: FloatArray) -> tuple[FloatArray, IntArray, FloatArray]:
    """From the boxes of the supports in leaf order: the blocks of all levels, each level's first block, the bounds."""
    levels = np.zeros(MAX_LEVELS + 1, np.int32)
    depth, blocks, children = 0, 0, len(lower)
    while depth == 0 or children > 1:
        children = (children + WIDTH - 1) // WIDTH
        blocks += children
        depth += 1
        levels[depth] = blocks
    boxes = np.empty((blocks, 6, WIDTH), np.float32)
    bounds = np.empty(6, np.float32)
    bounds[:3], bounds[3:] = _NOWHERE, -_NOWHERE
    for level in range(depth):
        children = len(lower) if level == 0 else levels[level] - levels[level - 1]
        for block in range(levels[level], levels[level + 1]):
            first = (block - levels[level]) * WIDTH
            for child in range(WIDTH):
                for i in range(3):
                    low, high = _NOWHERE, -_NOWHERE
                    if first + child < children:
                        if level == 0:
                            low, high = lower[first + child, i], upper[first + child, i]
                        else:
                            below = levels[level - 1] + first + child
                            low, high = boxes[below, i].min(), boxes[below, 3 + i].max()
                    boxes[block, i, child] = low
                    boxes[block, 3 + i, child] = high
    for i in range(3):
        if blocks > 0:
            bounds[i], bounds[3 + i] = boxes[blocks - 1, i].min(), boxes[blocks - 1, 3 + i].max()
    return boxes, levels[: depth + 1].copy(), bounds
