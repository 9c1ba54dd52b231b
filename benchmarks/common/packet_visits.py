"""What the packets of an image visit on a GPU, counted on the CPU: blocks of the hierarchy, entries of lists, slabs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from common.gpu_scene import SETTINGS, image_rays
from raygauss_ns.casting import Gaussians, whitening_matrices
from raygauss_ns.casting.gpu.hierarchy import build_gpu_hierarchy
from raygauss_ns.casting.gpu.launch import CAPACITY

Array = NDArray[Any]

SLAB = 8
"""Samples per slab, K."""
OPAQUE = 6.9
"""Optical depth after which a ray ends: -log of the transmittance 1e-3."""
VISITS = (
    *("tests", "candidates", "hits", "chunks", "pairs", "gaussians", "slabs", "composited", "skipped", "longest"),
    *("samples", "too_long"),
)
"""While collecting: tests of a block's 32 children, Gaussians projected, Gaussians listed. In the march: groups of 32
entries looked at, entries that overlap a slab, entries that are met in it, slabs, slabs with something in them, groups
looked at for the next slab. The longest list. Samples at which a Gaussian is not 0. Of all packets,
those that open windows in depth."""


@njit
def _cone_meets(o: Array, d: Array, box: Array, end: float) -> bool:
    """Whether the cone around rays [n, 3] meets a box [6] before a distance."""
    enter, leave = 0.0, end
    for i in range(3):
        bound = (box[i] - o[:, i].max()) / d[:, i].max()
        if d[:, i].max() > 0:
            enter = max(enter, bound)
        else:
            leave = min(leave, bound)
        bound = (box[3 + i] - o[:, i].min()) / d[:, i].min()
        if d[:, i].min() > 0:
            leave = min(leave, bound)
        else:
            enter = max(enter, bound)
    return enter <= leave


@njit
def _passage(o: Array, d: Array, record: Array) -> tuple[float, float, float]:
    """A ray's t*, bb and h2: |A (x - mu)|^2 = h2 + bb (t - t*)^2."""
    bb, ub, uu = 0.0, 0.0, 0.0
    for i in range(3):
        u, b = 0.0, 0.0
        for j in range(3):
            u += record[3 + 3 * i + j] * (o[j] - record[j])
            b += record[3 + 3 * i + j] * d[j]
        bb, ub, uu = bb + b * b, ub + u * b, uu + u * u
    return -ub / bb, bb, uu - ub * ub / bb


@njit
def _collect(
    o: Array, d: Array, scene: tuple[Array, Array, Array], firsts: Array, end: float, counts: Array, found: Array
) -> int:
    """Write the list of a packet [M, 3]: record, and distances between which it is met; returns its length."""
    records, reach, blocks = scene
    pending = np.empty((4 * 32 + 1, 2), np.int64)  # level and block
    length, depth = 0, 0
    for root in range(firsts[3], len(blocks)):
        pending[depth] = (3, root)
        depth += 1
        while depth > 0:
            depth -= 1
            level, block = pending[depth]
            counts[0] += 1
            for child in range(31, -1, -1):
                if not _cone_meets(o, d, blocks[block, :, child], end):
                    continue
                below = (block - firsts[level]) * 32 + child
                if level > 0:
                    pending[depth] = (level - 1, firsts[level - 1] + below)
                    depth += 1
                    continue
                counts[1] += 1
                enter, leave = np.inf, -1.0
                for r in range(len(o)):
                    closest, bb, h2 = _passage(o[r], d[r], records[below])
                    if h2 < reach[below]:
                        half = math.sqrt((reach[below] - h2) / bb)
                        if closest + half >= 0 and closest - half <= end:
                            enter = min(enter, max(closest - half, 0.0))
                            leave = max(leave, min(closest + half, end))
                if leave >= 0:
                    found[length, 0], found[length, 1], found[length, 2] = below, enter, leave
                    length += 1
    return length


@njit
def _add_gaussian(
    o: Array, d: Array, depth: Array, record: Array, reach: float, start: float, step: float, added: Array
) -> int:
    """Add a Gaussian's optical depths at the samples of a slab to `added` [n, SLAB]; -1 if they are not in its support.

    Returns:
        Otherwise at how many samples it is not 0.
    """
    touched, samples = False, 0
    last = start + (SLAB - 1) * step
    for r in range(len(o)):
        if depth[r] > OPAQUE:
            continue
        closest, bb, h2 = _passage(o[r], d[r], record)
        tau = min(max(closest, start), last) - closest
        if h2 + bb * tau * tau < reach:
            touched = True
            for k in range(SLAB):
                tau = start + k * step - closest
                q = h2 + bb * tau * tau
                if q < reach:
                    samples += 1
                    added[r, k] += record[12] * math.exp(-0.5 * q) * step
    return samples if touched else -1


@njit
def _march_packet(
    o: Array, d: Array, scene: tuple[Array, Array, Array], listed: Array, step: float, end: float, counts: Array
) -> None:
    """Repeat the forward kernel's march of a packet of rays [n, 3], in float64, and count (`VISITS`)."""
    records, reach, _ = scene
    chunks = -(-len(listed) // 32)
    depth = np.zeros(len(o))  # optical depth of each ray so far
    t = 0.0
    while t < end:
        counts[6] += 1
        counts[3] += chunks
        added = np.zeros((len(o), SLAB))
        last = t + (SLAB - 1) * step
        pairs, met, nearest = 0, 0, np.inf
        for entry in range(len(listed)):
            record, enter, leave = int(listed[entry, 0]), listed[entry, 1], listed[entry, 2]
            if leave >= t + SLAB * step:
                nearest = min(nearest, enter)
            if enter <= last and leave >= t:
                pairs += 1
                samples = _add_gaussian(o, d, depth, records[record], reach[record], t, step, added)
                met += samples >= 0
                counts[10] += max(samples, 0)
        counts[4] += pairs
        counts[5] += met
        counts[7] += met > 0
        for r in range(len(o)):
            depth[r] += added[r].sum()
        if depth.min() > OPAQUE:
            return
        t += SLAB * step
        if pairs == 0:
            counts[8] += chunks
            if nearest == np.inf:
                return
            t = max(t, (math.floor(nearest / step) - 1) * step)


def count_visits(gaussians: Gaussians, colors: Tensor, side: int, every: int) -> dict[str, float]:
    """Mean visits per packet, over every `every`-th packet of an image of the benchmark's camera; the longest list."""
    whitenings = whitening_matrices(gaussians.scales, gaussians.quats)
    hierarchy = build_gpu_hierarchy(
        gaussians.means, whitenings, gaussians.densities, colors, SETTINGS.density_threshold
    )
    scene = tuple(x.double().numpy() for x in (hierarchy.records, hierarchy.squared_cutoff, hierarchy.blocks))
    firsts = np.cumsum([0, *hierarchy.sizes[:3]])
    lower, upper = hierarchy.bounds.double().numpy().reshape(2, 3)
    rays = image_rays(side, "cpu")
    origins, directions = (tensor.double().view(side, side, 3).numpy() for tensor in rays[:2])
    counts, found = np.zeros(len(VISITS), np.int64), np.empty((len(scene[0]), 3))
    tiles = range(0, (side // 4) * (side // 8), every)
    for packet in tiles:
        y, x = packet // (side // 8) * 4, packet % (side // 8) * 8
        o, d = (array[y : y + 4, x : x + 8].reshape(-1, 3).copy() for array in (origins, directions))
        # Moved to where the first ray enters the box of all Gaussians, as the kernels do.
        a, b = (lower - o) / d, (upper - o) / d
        enter, leave = np.minimum(a, b).max(1), np.maximum(a, b).min(1)
        inside = enter <= leave
        if not inside.any():
            continue
        start = max(enter[inside].min(), 0.0)
        end = leave[inside].max() - start
        o += start * d
        length = _collect(o, d, scene, firsts, end, counts, found)
        counts[2] += length
        counts[9] = max(counts[9], length)
        counts[11] += length >= CAPACITY
        _march_packet(o, d, scene, found[:length], SETTINGS.step, end, counts)
    visits = dict(zip(VISITS, (counts / len(tiles)).tolist(), strict=True))
    return visits | {"longest": float(counts[9])}
