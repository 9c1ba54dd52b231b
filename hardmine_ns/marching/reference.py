"""The PyTorch references of marching and compositing, which the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from hardmine_ns.marching.lattice import RayLattices, lattice_edge, lattice_range
from hardmine_ns.marching.occupancy import OccupancyGrid, locate
from hardmine_ns.marching.samples import PackedSamples, pack

_LATTICE_POINTS_AT_ONCE = 1 << 22
"""Lattice points that the PyTorch version looks at together: about 200 MB of temporaries."""
_OPAQUE = 1e3
"""Optical thickness above which nothing changes: exp(-1000) is 0 in float64 too."""


def march_rays_torch(rays: RayLattices, grid: OccupancyGrid) -> PackedSamples:
    """The reference of `march_rays`: lattice, query, mask, for as many rays at once as memory allows.

    Args:
        rays: the rays, the jitter already in their starts.
        grid: on the same device.
    """
    origins, directions, starts, fars, step_size, cone_angle = rays
    num_rays = origins.shape[0]
    first, count = lattice_range(rays, grid)
    hit = count > 0
    longest = int(count.max()) if num_rays else 0
    steps = torch.arange(longest, device=origins.device)
    pieces = []
    rays_at_once = max(1, _LATTICE_POINTS_AT_ONCE // max(longest, 1))
    for low in range(0, num_rays if longest else 0, rays_at_once):
        own = slice(low, low + rays_at_once)
        k = first[own, None] + steps
        t0 = lattice_edge(k, starts[own, None], step_size, cone_angle)
        t1 = lattice_edge(k + 1, starts[own, None], step_size, cone_angle)
        middle = (t0 + t1) * 0.5
        cells, inside = locate(origins[own, None] + middle[..., None] * directions[own, None], grid)
        keep = inside & hit[own, None] & (middle < fars[own, None]) & grid.binaries.view(-1)[cells]
        ray, step = torch.nonzero(keep, as_tuple=True)
        pieces.append((t0[ray, step], t1[ray, step], ray + low))
    if not pieces:
        empty = origins.new_empty(0)
        return pack(empty, empty.clone(), empty.to(torch.int64), num_rays)
    t_starts, t_ends, rays_of = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return pack(t_starts, t_ends, rays_of, num_rays)


def starts_of_groups_torch(samples: PackedSamples, thickness: Tensor, limit: float, most: int) -> Tensor:
    """Say which samples begin a merged interval (`merging`): the definition, for all rays at once, front to back.

    Args:
        samples: M intervals.
        thickness: [M] float32 optical thickness x of each.
        limit: greatest sum of x in a group.
        most: greatest number of intervals in a group.

    Returns:
        [M] bool.
    """
    firsts = torch.ones_like(thickness, dtype=torch.bool)
    begins, lengths = samples.offsets[:-1], samples.offsets[1:] - samples.offsets[:-1]
    total, count = thickness.new_zeros(len(begins)), torch.zeros_like(begins)
    for rank in range(int(lengths.max()) if len(lengths) else 0):
        rays = torch.nonzero(lengths > rank)[:, 0]
        own = begins[rays] + rank
        touches = samples.t_starts[own] == samples.t_ends[own - 1] if rank else torch.zeros_like(rays, dtype=torch.bool)
        joins = touches & (count[rays] < most) & (total[rays] + thickness[own] <= limit)
        firsts[own] = ~joins
        total[rays] = torch.where(joins, total[rays] + thickness[own], thickness[own])
        count[rays] = torch.where(joins, count[rays] + 1, 1)
    return firsts


def learn_hardness_torch(values: Tensor, cells: Tensor, hardness: Tensor, rate: float) -> Tensor:
    """Hardness of cells after some more samples (`hardness_map`): the definition, one sample after the other.

    Args:
        values: [cells] hardness, negative where it is not known.
        cells: [n] int64, those of the samples.
        hardness: [n] of the samples.
        rate: part of the way to a new value.

    Returns:
        [cells], the new values.
    """
    values = values.clone()
    for cell, found in zip(cells.tolist(), hardness, strict=True):
        values[cell] = found if values[cell] < 0 else values[cell] + rate * (found - values[cell])
    return values


def composite_torch(
    thickness: Tensor, colors: Tensor, middles: Tensor, samples: PackedSamples
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole-tensor version of the forward pass.

    Args:
        thickness: [M] x.
        colors: [M, 3].
        middles: [M] t, of the same dtype.
        samples: which sample lies on which ray.

    Returns:
        (weights [M], transmittance behind each interval [M], per ray the sums of (w c, w, w t) [R, 5]).
    """
    before = _exclusive_sums(thickness.clamp(max=_OPAQUE), samples)
    weights = torch.exp(-before) * -torch.expm1(-thickness)
    after = torch.exp(-(before + thickness))
    columns = torch.cat([colors, torch.ones_like(middles)[:, None], middles[:, None]], dim=1) * weights[:, None]
    sums = columns.new_zeros(samples.num_rays, 5).index_add_(0, samples.ray_indices, columns)
    return weights, after, sums


def composite_backward_torch(
    colors: Tensor,
    middles: Tensor,
    samples: PackedSamples,
    weights: Tensor,
    after: Tensor,
    grad_sums: Tensor,
    grad_weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Whole-tensor version of the backward pass: gradients of thickness [M] and colours [M, 3].

    Args:
        colors: [M, 3].
        middles: [M].
        samples: which sample lies on which ray.
        weights: [M] from the forward pass.
        after: [M] transmittance behind each interval, from the forward pass.
        grad_sums: [R, 5].
        grad_weights: [M].
    """
    per_sample = grad_sums.index_select(0, samples.ray_indices)
    q = (per_sample[:, :3] * colors).sum(-1) + per_sample[:, 3] + per_sample[:, 4] * middles + grad_weights
    share = weights * q
    total = torch.zeros_like(grad_sums[:, 0]).index_add_(0, samples.ray_indices, share)
    behind = total.index_select(0, samples.ray_indices) - _exclusive_sums(share, samples) - share
    return after * q - behind, weights[:, None] * per_sample[:, :3]


def _exclusive_sums(values: Tensor, samples: PackedSamples) -> Tensor:
    """For each sample the sum of the values before it on its ray, [M], in the dtype of the values.

    NaN if one of these is not finite.
    """
    starts = samples.offsets[:-1].index_select(0, samples.ray_indices)
    bad = ~values.isfinite()

    def sums(x: Tensor, dtype: torch.dtype) -> Tensor:
        inclusive = torch.cumsum(x, 0, dtype=dtype)
        exclusive = torch.cat([inclusive.new_zeros(1), inclusive])
        return exclusive[:-1] - exclusive[starts]

    spoilt = sums(bad, torch.int64) > 0
    return sums(values.masked_fill(bad, 0), torch.float64).masked_fill(spoilt, torch.nan).to(values.dtype)
