"""What the packets of an image visit in the GPU's march, counted on the CPU: BVH nodes, leaves, Gaussians, slabs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from common.gpu_scene import CAMERA_DISTANCE, SETTINGS, image_rays, shell_scene
from raygauss_ns.casting import whitening_matrices
from raygauss_ns.casting.cpu.bvh import build_bvh
from raygauss_ns.casting.morton import morton_codes

Array = NDArray[Any]

SLAB = 8
"""Samples per slab, K."""
OPAQUE = 6.9
"""Optical depth after which a ray ends: -log of the transmittance 1e-3."""
END = 8.0
"""Distance at which a ray has left the scene."""


@njit
def _first_entry(
    o: Array, d: Array, depth: Array, boxes: Array, links: Array, start: float, end: float, counts: Array
) -> float:
    """Smallest distance, from `start` on, at which a ray of the packet enters a leaf's box; `end` if none does."""
    nearest, node = end, 0
    while node < len(links):
        counts[5] += 1
        best = np.inf
        for r in range(len(o)):
            if depth[r] > OPAQUE:
                continue
            enter, leave = start, nearest
            for i in range(3):
                a, b = (boxes[node, i] - o[r, i]) / d[r, i], (boxes[node, 3 + i] - o[r, i]) / d[r, i]
                enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
            if enter <= leave:
                best = min(best, enter)
        if best < np.inf:
            if links[node, 1]:
                nearest = best
            node += 1
        else:
            node = links[node, 0]
    return nearest


@njit
def _meets(o: Array, d: Array, depth: Array, box: Array, first: float, last: float) -> bool:
    """Whether a ray that is not opaque may have a sample between two distances in a box [6]."""
    hit = False
    for r in range(len(o)):
        inside = depth[r] <= OPAQUE
        for i in range(3):
            a, b = o[r, i] + first * d[r, i], o[r, i] + last * d[r, i]
            inside &= box[i] <= max(a, b) and box[3 + i] >= min(a, b)
        hit |= inside
    return hit


@njit
def _add_gaussian(
    o: Array, d: Array, depth: Array, record: Array, reach: float, start: float, step: float, added: Array
) -> bool:
    """Add a Gaussian's optical depths at the samples of a slab to `added` [n, SLAB]; whether its support is met."""
    touched = False
    last = start + (SLAB - 1) * step
    for r in range(len(o)):
        if depth[r] > OPAQUE:
            continue
        bb, ub, uu = 0.0, 0.0, 0.0
        for i in range(3):
            u, b = 0.0, 0.0
            for j in range(3):
                u += record[3 + 3 * i + j] * (o[r, j] - record[j])
                b += record[3 + 3 * i + j] * d[r, j]
            bb, ub, uu = bb + b * b, ub + u * b, uu + u * u
        closest, h2 = -ub / bb, uu - ub * ub / bb
        tau = min(max(closest, start), last) - closest
        if h2 + bb * tau * tau < reach:
            touched = True
            for k in range(SLAB):
                tau = start + k * step - closest
                q = h2 + bb * tau * tau
                if q < reach:
                    added[r, k] += record[12] * math.exp(-0.5 * q) * step
    return touched


@njit
def _march_packet(o: Array, d: Array, scene: tuple[Array, Array, Array, Array], step: float, counts: Array) -> None:
    """Repeat the forward kernel's march of a packet of rays [n, 3], in float64, and count.

    `scene`: records, squared cutoff radii, boxes and links. `counts`: slabs, nodes visited in slabs, leaves met,
    Gaussians met, slabs composited, nodes visited while skipping.
    """
    records, reach, boxes, links = scene
    depth = np.zeros(len(o))  # optical depth of each ray so far
    t, seek = 0.0, True
    while t < END:
        if seek:
            nearest = _first_entry(o, d, depth, boxes, links, t, END, counts)
            if nearest >= END:
                return
            t = max(t, (math.floor(nearest / step) - 1) * step)
        counts[0] += 1
        added = np.zeros((len(o), SLAB))
        last = t + (SLAB - 1) * step
        node, leaves, met = 0, 0, 0
        while node < len(links):
            counts[1] += 1
            if not _meets(o, d, depth, boxes[node], t, last):
                node = links[node, 0]
                continue
            node += 1
            if links[node - 1, 1] == 0:
                continue
            leaves += 1
            record = links[node - 1, 1] >> 4
            met += _add_gaussian(o, d, depth, records[record], reach[record], t, step, added)
        counts[2] += leaves
        counts[3] += met
        counts[4] += met > 0
        for r in range(len(o)):
            depth[r] += added[r].sum()
        if depth.min() > OPAQUE:
            return
        t += SLAB * step
        seek = leaves == 0


@njit
def _split(codes: Array, first: int, last: int) -> int:
    """Index at which records first..last-1 are split: where the highest differing bit changes, else in the middle."""
    difference = codes[first] ^ codes[last - 1]
    if difference == 0:
        return (first + last) // 2
    bit = np.uint32(1) << np.uint32(31)
    while not difference & bit:
        bit >>= np.uint32(1)
    low, high = first, last - 1  # codes[low] lacks the bit, codes[high] has it
    while high - low > 1:
        middle = (low + high) // 2
        if codes[middle] & bit:
            high = middle
        else:
            low = middle
    return high


@njit
def _build_nodes(codes: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Build the nodes, in depth-first order, from sorted codes and the boxes of the supports in the same order.

    Returns:
        Boxes [M, 6], and links [M, 2]: the skip pointer (the next node if the box is missed), and of a leaf its first
        record and their number, packed; 0 of an inner node.
    """
    count = len(codes)
    boxes = np.empty((2 * count, 6), np.float32)
    links = np.empty((2 * count, 2), np.int32)
    second = np.empty(2 * count, np.int32)  # an inner node's second child; the first follows it directly
    # A pending range: its first and last record, and the inner node whose second child it is (-1: none).
    # The depth is at most 30 bits plus the halvings of equal codes.
    pending = np.empty((128, 3), np.int64)
    pending[0] = (0, count, -1)
    depth, nodes = 1, 0
    while depth > 0:
        depth -= 1
        first, last, parent = pending[depth]
        node = nodes
        nodes += 1
        if parent >= 0:
            second[parent] = node
        if last - first <= 1:
            links[node, 1] = (first << 4) | (last - first)
        else:
            middle = _split(codes, first, last)
            links[node, 1] = 0
            pending[depth] = (middle, last, node)
            pending[depth + 1] = (first, middle, -1)
            depth += 2
    # Children come after their parent: one pass from the end sees every child before its parent.
    for node in range(nodes - 1, -1, -1):
        packed = links[node, 1]
        if packed:
            first = packed >> 4
            last = first + (packed & ((1 << 4) - 1))
            for i in range(3):
                boxes[node, i] = lower[first:last, i].min()
                boxes[node, 3 + i] = upper[first:last, i].max()
        else:
            a, b = node + 1, second[node]
            for i in range(3):
                boxes[node, i] = min(boxes[a, i], boxes[b, i])
                boxes[node, 3 + i] = max(boxes[a, 3 + i], boxes[b, 3 + i])
    # The skip pointer of a first child is its sibling, that of a second child is its parent's.
    links[0, 0] = nodes
    for node in range(nodes):
        if not links[node, 1]:
            links[node + 1, 0] = second[node]
            links[second[node], 0] = links[node, 0]
    return boxes[:nodes].copy(), links[:nodes].copy()


def count_visits(count: int, side: int, every: int) -> dict[str, float]:
    """Mean visits per packet, over every `every`-th packet of an image of the benchmark's scene."""
    gaussians, colors = shell_scene(count, "cpu")
    whitenings = whitening_matrices(gaussians.scales, gaussians.quats)
    inputs = (gaussians.means, whitenings, gaussians.densities, colors)
    bvh = build_bvh(*(tensor.numpy() for tensor in inputs), SETTINGS.density_threshold)
    # The GPU's BVH has two children per node, and the same leaves in the order of the same codes.
    leaves = bvh.boxes[: bvh.levels[1]].transpose(0, 2, 1).reshape(-1, 6)[: len(bvh.order)]
    codes = morton_codes(torch.from_numpy(bvh.records[:, :3].copy()), 10).numpy().astype(np.uint32)
    boxes, links = _build_nodes(codes, leaves[:, :3].copy(), leaves[:, 3:].copy())
    rays = image_rays(side, "cpu")
    origins, directions = (tensor.double().view(side, side, 3).numpy() for tensor in rays[:2])
    # Moved to the first sample of the packets, at the scene's box.
    origins = origins + (CAMERA_DISTANCE - 1.3) * directions
    counts, packets = np.zeros(6, np.int64), 0
    for packet in range(0, (side // 4) * (side // 8), every):
        y, x = packet // (side // 8) * 4, packet % (side // 8) * 8
        o, d = (array[y : y + 4, x : x + 8].reshape(-1, 3).copy() for array in (origins, directions))
        _march_packet(o, d, (bvh.records, bvh.reach, boxes, links), SETTINGS.step, counts)
        packets += 1
    names = ("slabs", "nodes", "leaves", "gaussians", "composited", "skipping")
    return dict(zip(names, (counts / packets).tolist(), strict=True))
