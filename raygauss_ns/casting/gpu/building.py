"""The hierarchy built by kernels: `hierarchy.build_gpu_hierarchy`, which defines it, in eight launches.

supports -> their box -> Morton codes -> sort -> gather the records, and four levels of blocks
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.gpu.geometry import supports
from raygauss_ns.casting.gpu.hierarchy import CHILDREN, LEVELS, GpuHierarchy

_BLOCK, _WARPS = 128, 4
_GROUP = 8
"""Blocks that a program makes at once: of 256 children."""


@triton.jit
def _spread(cells: ty.Lanes) -> ty.Lanes:
    """Bit b of each coordinate (16 bits) becomes bit 3 b, as in `morton.interleave`."""
    cells = (cells | (cells << 16)) & 0x001F0000FF0000FF
    cells = (cells | (cells << 8)) & 0x100F00F00F00F00F
    cells = (cells | (cells << 4)) & 0x10C30C30C30C30C3
    return (cells | (cells << 2)) & 0x1249249249249249


@triton.jit(do_not_specialize=["number"])
def codes_kernel(
    records: ty.Pointer, cutoffs: ty.Pointer, box: ty.Pointer, codes: ty.Pointer, number: ty.Scalar, BLOCK: tl.constexpr
) -> None:
    """Morton codes of a block of means, 16 bits per axis; culled Gaussians get the greatest."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = i < number
    alive = valid & (tl.load(cutoffs + i, mask=valid, other=-1.0) >= 0.0)
    code = tl.zeros([BLOCK], tl.int64)
    for axis in tl.static_range(3):
        mean = tl.load(records + 16 * i + axis, mask=alive, other=0.0)
        lower, upper = tl.load(box + axis), -tl.load(box + axis + 3)
        # Of a side of length 0, there is one cell.
        cell = (mean - lower) / tl.maximum(upper - lower, 1e-37) * 65535.0
        cell = tl.where(alive, tl.minimum(tl.maximum(cell, 0.0), 65535.0), 0.0)
        code |= _spread(cell.to(tl.int64)) << axis
    tl.store(codes + i, tl.where(alive, code, 1 << 48), mask=valid)


@triton.jit(do_not_specialize=["children", "first"])
def level_kernel(
    corners: ty.Pointer,
    order: ty.Pointer,
    records: ty.Pointer,
    cutoffs: ty.Pointer,
    ordered_records: ty.Pointer,
    ordered_cutoffs: ty.Pointer,
    blocks: ty.Pointer,
    unions: ty.Pointer,
    bounds: ty.Pointer,
    children: ty.Scalar,
    first: ty.Scalar,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """Blocks of 32 boxes each, and the boxes around them: one level of the hierarchy.

    `corners` [children, 6] are the boxes below, the upper corners negated; `blocks` receives the level's blocks from
    the one with number `first` on, and `unions` their boxes. At the lowest level, corners are those of the Gaussians in
    their own order, and the records are copied in the hierarchy's order. At the highest, one program makes all blocks
    and the box around everything.
    """
    lane = tl.arange(0, 32)[None]
    count = (children + 31) // 32
    block = tl.program_id(0) * GROUP
    last = count if HIGHEST else tl.minimum(block + GROUP, count)
    for side in tl.static_range(6):
        least = tl.full([], 3e38, tl.float32)
        start = block
        while start < last:
            here = (start + tl.arange(0, GROUP)).to(tl.int64)
            child = here[:, None] * 32 + lane
            there = child < children
            if LOWEST:
                child = tl.load(order + child, mask=there, other=0)
            value = tl.load(corners + child * 6 + side, mask=there, other=3e38)
            made = here < count
            to = blocks + (first + here)[:, None] * 192 + side * 32 + lane
            tl.store(to, value if side < 3 else -value, mask=made[:, None])
            union = tl.min(value, 1)
            if HIGHEST:
                least = tl.minimum(least, tl.min(union, 0))
            else:
                tl.store(unions + here * 6 + side, union, mask=made)
            start += GROUP
        if HIGHEST:
            # Nothing alive: a point that no ray reaches.
            tl.store(bounds + side, least if side < 3 else tl.where(least == 3e38, 3e38, -least))
    if LOWEST:
        i = block.to(tl.int64) * 32 + tl.arange(0, 32 * GROUP)
        there = i < children
        gaussian = tl.load(order + i, mask=there, other=0)
        tl.store(ordered_cutoffs + i, tl.load(cutoffs + gaussian, mask=there, other=0.0), mask=there)
        column = tl.arange(0, 16)[None]
        value = tl.load(records + gaussian[:, None] * 16 + column, mask=there[:, None], other=0.0)
        tl.store(ordered_records + i[:, None] * 16 + column, value, mask=there[:, None])


@torch.no_grad()
def hierarchy_of(parameters: tuple[Tensor, ...], density_threshold: float) -> GpuHierarchy:
    """The hierarchy of N > 0 Gaussians.

    Args:
        parameters: means [N, 3], scales [N, 3], quats [N, 4], densities [N] and colours [N, 3], float32, contiguous;
            Gaussians of which any number is not finite, or a scale 0, are culled.
        density_threshold: density cutoff eps > 0 (1/length).
    """
    found = supports(parameters, density_threshold)
    number = len(found.records)
    codes = torch.empty(number, dtype=torch.int64, device=found.records.device)
    codes_kernel[(triton.cdiv(number, _BLOCK),)](
        found.records, found.cutoffs, found.box, codes, number, BLOCK=_BLOCK, num_warps=_WARPS
    )
    order = torch.argsort(codes, stable=True)
    sizes = [triton.cdiv(number, CHILDREN)]
    while len(sizes) < LEVELS:
        sizes.append(triton.cdiv(sizes[-1], CHILDREN))
    records, cutoffs = torch.empty_like(found.records), torch.empty_like(found.cutoffs)
    blocks, bounds = records.new_empty(sum(sizes), 6, CHILDREN), records.new_empty(6)
    corners, children, first = found.corners, number, 0
    for level, size in enumerate(sizes):
        highest = level == LEVELS - 1
        unions = records.new_empty(0 if highest else size, 6)
        level_kernel[(1 if highest else triton.cdiv(size, _GROUP),)](
            *(corners, order, found.records, found.cutoffs, records, cutoffs, blocks, unions, bounds, children, first),
            LOWEST=level == 0,
            HIGHEST=highest,
            GROUP=_GROUP,
            num_warps=_WARPS,
        )
        corners, children, first = unions, size, first + size
    return GpuHierarchy(order, records, cutoffs, bounds, blocks, tuple(sizes))
