"""A binary BVH over all Gaussians with skip pointers (stackless traversal), built on the device without host syncs.

Without copies to the host, the number of Gaussians above the density cutoff is not known. So all N get a record and a
leaf. Culled ones get an empty box and the greatest code: a single test of their common subtree skips all of them.

Records are sorted by unique keys (Morton code, then index). The node that splits between records i and i + 1 covers all
records that share the common prefix of these two keys, so its two ends are found by binary search. The position of a
node of records l..r in depth-first order is 2 l + L(r): the nodes of the l records before it, plus the ancestors whose
first child's subtree contains it, which are those of record r. The box of a node is the union of a range of leaf boxes,
a range query of a complete binary tree.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.morton import morton_codes

_BLOCK = 256


class GpuBvh(NamedTuple):
    """`Bvh` as tensors on one device, over all N Gaussians.

    Attributes:
        order: [N] int64, index of each record's Gaussian; culled ones come last.
        records: [N, 16] float32, in leaf order: mean, A, peak density, colour.
        squared_cutoff: [N] float32, squared cutoff radius k^2, slightly enlarged; -1 for a culled Gaussian.
        boxes: [2 N - 1, 6] float32, lower then upper corner; all 3e38 for an empty node, which no ray can meet.
        links: [2 N - 1, 2] int32: skip pointer, the node to continue with on a miss; record * 16 + 1 (0: inner node).
    """

    order: Tensor
    records: Tensor
    squared_cutoff: Tensor
    boxes: Tensor
    links: Tensor


@torch.no_grad()
def build_gpu_bvh(
    means: Tensor, whitenings: Tensor, densities: Tensor, colors: Tensor, density_threshold: float
) -> GpuBvh:
    """Build the BVH of N > 0 Gaussians, all tensors float32 on one device.

    Args:
        means: [N, 3] centres mu.
        whitenings: [N, 3, 3] A = diag(1/s) R^T.
        densities: [N] peak densities sigma (1/length).
        colors: [N, 3].
        density_threshold: density cutoff eps > 0, below which a Gaussian's density counts as zero (1/length).
    """
    n = len(densities)
    lower, upper, squared_cutoff = _supports(means, whitenings, densities, colors, density_threshold)
    index_bits = n.bit_length()
    codes, order = torch.sort(morton_codes(means, min((62 - index_bits) // 3, 16), squared_cutoff >= 0), stable=True)
    records = _records(means, whitenings, densities, colors)[order]
    index = torch.arange(n, device=means.device)
    first, last, before = _nodes((codes << index_bits) | index)
    # With negated upper corners, the union of boxes is a minimum of all six numbers.
    corners = torch.cat([lower, -upper], dim=1)[order]
    boxes, links = corners.new_empty(2 * n - 1, 6), torch.empty(2 * n - 1, 2, dtype=torch.int32, device=means.device)
    write_nodes_kernel[(triton.cdiv(n, _BLOCK),)](
        _union_tree(corners), first, last, before, boxes, links, n, 1 << (n - 1).bit_length(), BLOCK=_BLOCK
    )
    return GpuBvh(order, records, squared_cutoff[order], boxes, links)


@torch.no_grad()
def gather_records(
    means: Tensor, whitenings: Tensor, densities: Tensor, colors: Tensor, density_threshold: float
) -> GpuBvh:
    """Only the records and the root, in the Gaussians' original order; arguments as for `build_gpu_bvh`."""
    lower, upper, squared_cutoff = _supports(means, whitenings, densities, colors, density_threshold)
    box = torch.cat([lower.amin(0), upper.amax(0)])
    return GpuBvh(
        torch.arange(len(densities), device=means.device),
        _records(means, whitenings, densities, colors),
        squared_cutoff,
        torch.where(box[0] == torch.inf, 3e38, box)[None],
        torch.ones(1, 2, dtype=torch.int32, device=means.device),
    )


def _records(means: Tensor, whitenings: Tensor, densities: Tensor, colors: Tensor) -> Tensor:
    return torch.cat([means, whitenings.reshape(-1, 9), densities[:, None], colors], dim=1)


def _supports(
    means: Tensor, whitenings: Tensor, densities: Tensor, colors: Tensor, density_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Bounding boxes [N, 3], [N, 3] and padded k^2 [N] of the supports; (inf, -inf) and -1 for culled Gaussians."""
    squared_radius = 2 * torch.log(densities / density_threshold)
    rows = whitenings / (whitenings * whitenings).sum(-1, keepdim=True)
    # Padded by more than float32's rounding error: a box never cuts what the exact test would keep.
    half = torch.sqrt(squared_radius[:, None] * (rows * rows).sum(1)) * (1 + 1e-4) + 1e-6 * (1 + means.abs())
    lower, upper = means - half, means + half
    alive = (densities > density_threshold) & (squared_radius > 0) & colors.sum(-1).isfinite()
    alive = alive & (lower + upper).isfinite().all(-1)  # infinite half extents sum to NaN
    alive = alive & densities.isfinite()
    squared_cutoff = torch.where(alive, squared_radius * (1 + 1e-5) + 1e-6, -1.0)
    return (
        torch.where(alive[:, None], lower, torch.inf),
        torch.where(alive[:, None], upper, -torch.inf),
        squared_cutoff,
    )


def _nodes(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From ascending unique keys [N]: first and last record of each inner node, and L of each record.

    Inner node i, for i < N - 1, splits between records i and i + 1. L(i) [N] is the number of inner nodes whose first
    child's subtree contains record i.
    """
    differing = keys[:-1] ^ keys[1:]
    for shift in (1, 2, 4, 8, 16, 32):
        differing = differing | (differing >> shift)  # ones from the highest differing bit downwards
    first = torch.searchsorted(keys, keys[:-1] & ~differing)
    last = torch.searchsorted(keys, keys[:-1] | differing, right=True) - 1
    # Record i is the last one of node i's first child. The next such ancestor is node last[i]: L(i) = 1 + L(last[i]).
    # Each hop shortens the common prefix, so that 63 bits allow at most 63 hops: six doublings.
    end = torch.full_like(keys[:1], len(keys) - 1)
    following = torch.cat([last, end])
    before = torch.ones_like(keys)
    before[-1:] = 0
    for _ in range(6):
        before = before + before[following]
        following = following[following]
    return first, last, before


def _union_tree(corners: Tensor) -> Tensor:
    """[2 P, 6] with P the power of two >= N: entry P + i is corner i, entry i the minimum of 2 i and 2 i + 1."""
    n = len(corners)
    leaves = 1 << (n - 1).bit_length()
    tree = torch.full((2 * leaves, 6), torch.inf, device=corners.device)
    tree[leaves : leaves + n] = corners
    while leaves > 1:
        pairs = tree[leaves : 2 * leaves].view(-1, 2, 6)
        leaves //= 2
        torch.minimum(pairs[:, 0], pairs[:, 1], out=tree[leaves : 2 * leaves])
    return tree


@triton.jit
def _lower_corner(
    tree: ty.Pointer, at: ty.Lanes, mask: ty.Lanes, x0: ty.Lanes, y0: ty.Lanes, z0: ty.Lanes
) -> ty.Vector:
    x0 = tl.minimum(x0, tl.load(tree + at * 6, mask=mask, other=float("inf")))
    y0 = tl.minimum(y0, tl.load(tree + at * 6 + 1, mask=mask, other=float("inf")))
    z0 = tl.minimum(z0, tl.load(tree + at * 6 + 2, mask=mask, other=float("inf")))
    return x0, y0, z0


@triton.jit
def _write_node(
    boxes: ty.Pointer,
    links: ty.Pointer,
    at: ty.Lanes,
    mask: ty.Lanes,
    lower: ty.Vector,
    upper: ty.Vector,
    skip: ty.Lanes,
    packed: ty.Lanes,
) -> None:
    """Store a node; `upper` is negated. An empty box is placed where no ray can meet it."""
    empty = lower[0] == float("inf")
    nowhere = 3e38
    tl.store(boxes + at * 6, tl.where(empty, nowhere, lower[0]), mask=mask)
    tl.store(boxes + at * 6 + 1, tl.where(empty, nowhere, lower[1]), mask=mask)
    tl.store(boxes + at * 6 + 2, tl.where(empty, nowhere, lower[2]), mask=mask)
    tl.store(boxes + at * 6 + 3, tl.where(empty, nowhere, -upper[0]), mask=mask)
    tl.store(boxes + at * 6 + 4, tl.where(empty, nowhere, -upper[1]), mask=mask)
    tl.store(boxes + at * 6 + 5, tl.where(empty, nowhere, -upper[2]), mask=mask)
    tl.store(links + at * 2, skip.to(tl.int32), mask=mask)
    tl.store(links + at * 2 + 1, packed.to(tl.int32), mask=mask)


@triton.jit(do_not_specialize=["n", "leaves"])
def write_nodes_kernel(
    tree: ty.Pointer,
    firsts: ty.Pointer,
    lasts: ty.Pointer,
    before: ty.Pointer,
    boxes: ty.Pointer,
    links: ty.Pointer,
    n: ty.Scalar,
    leaves: ty.Scalar,
    BLOCK: tl.constexpr,
) -> None:
    """Write leaf i and inner node i to their positions, for a block of i."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    leaf = i < n
    none = tl.full([BLOCK], float("inf"), tl.float32)
    lower = _lower_corner(tree, leaves + i, leaf, none, none, none)
    upper = _lower_corner(tree + 3, leaves + i, leaf, none, none, none)
    place = 2 * i + tl.load(before + i, mask=leaf, other=0)
    _write_node(boxes, links, place, leaf, lower, upper, place + 1, i * 16 + 1)

    inner = i < n - 1
    first = tl.load(firsts + i, mask=inner, other=0)
    last = tl.load(lasts + i, mask=inner, other=0)
    place = 2 * first + tl.load(before + last, mask=inner, other=0)
    x0, y0, z0, x1, y1, z1 = none, none, none, none, none, none
    low = tl.where(inner, first + leaves, 0)
    high = tl.where(inner, last + leaves + 1, 0)
    # Range query, bottom up from both ends: an end that is not on its parent's border adds its own subtree's box.
    while tl.max((low < high).to(tl.int32), 0) > 0:
        taken = (low < high) & (low % 2 == 1)
        x0, y0, z0 = _lower_corner(tree, low, taken, x0, y0, z0)
        x1, y1, z1 = _lower_corner(tree + 3, low, taken, x1, y1, z1)
        low = tl.where(taken, low + 1, low)
        taken = (low < high) & (high % 2 == 1)
        high = tl.where(taken, high - 1, high)
        x0, y0, z0 = _lower_corner(tree, high, taken, x0, y0, z0)
        x1, y1, z1 = _lower_corner(tree + 3, high, taken, x1, y1, z1)
        low = low // 2
        high = high // 2
    _write_node(boxes, links, place, inner, (x0, y0, z0), (x1, y1, z1), place + 2 * (last - first) + 1, low * 0)
