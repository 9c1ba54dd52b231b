"""Launches the visibility pass of `search`: tensors of a fixed capacity in, tensors of a fixed capacity out.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hardmine_ns.hash_encoding.gpu.encoding import on_device
from hardmine_ns.marching.lattice import RayLattices
from hardmine_ns.marching.occupancy import OccupancyGrid
from hardmine_ns.marching.samples import PackedSamples
from hardmine_ns.rendering.field import GEOMETRY_DIM, HashField
from hardmine_ns.rendering.gpu.search import order_kernel, search_kernel

_BLOCK = 64
"""Samples that a program of `order_kernel` copies."""
WIDEST_INPUT = 64
"""Greatest number of features for which the kernel is built."""


class Limits(NamedTuple):
    """What makes a sample visible.

    Attributes:
        early_stop: transmittance below which the rest of a ray is hidden, in [0, 1].
        alpha_threshold: opacity below which a sample is dropped; never more than the grid's mean thickness.
    """

    early_stop: float
    alpha_threshold: float


class Found(NamedTuple):
    """Visible samples, of which only the GPU knows how many there are: B, in tensors of C > B rows; 0 in the others.

    Attributes:
        samples: by ray; `offsets` says how many there are.
        unit_positions: [C, 3] in the unit cube of the field.
        geometry: [C, 16] outputs of the density network.
        features: [C, L F] its inputs.
        kept: [R] float32: 0 for rays that were left out since the capacity did not suffice; else 1.
        looked_up: [R] int64 samples of each ray whose density was evaluated.
    """

    samples: PackedSamples
    unit_positions: Tensor
    geometry: Tensor
    features: Tensor
    kept: Tensor
    looked_up: Tensor


def fits(field: HashField) -> bool:
    """Whether the kernel serves a field: one of Triton's encoding, in float32, whose density network is small."""
    table, layers = field.encoding.table, field.density_net.layers
    kinds = {table.dtype, *(layer.weight.dtype for layer in layers)}
    narrow = field.encoding.out_dim <= WIDEST_INPUT and len(layers) == 2
    return field.encoding.on_gpu and kinds == {torch.float32} and narrow and table.numel() < 1 << 31


def visible_of_rays(
    field: HashField,
    rays: RayLattices,
    grid: OccupancyGrid,
    limits: Limits,
    capacity: int,
    report: Tensor,
    *,
    contracts: bool,
    observed: Tensor | None = None,
) -> Found:
    """March rays and find what is visible on them, without a graph; `visibility.search` of `march_rays`.

    Args:
        field: gives densities; its table and networks are float32.
        rays: R rays, float32; the jitter is in their starts.
        grid: on the same device.
        limits: what is visible.
        capacity: C, rows of the results; a multiple of 64, so that all of them are aligned alike.
        report: [2] float64, to be written: visible samples, those for which there was no room included; samples
            evaluated.
        contracts: whether the field covers all of space, as for `field.UnitCube`.
        observed: [cells of the grid] float32, not negative or -1: raised to the optical thickness of a step of each
            evaluated sample in a cell.
    """
    device, number = rays.origins.device, len(rays.origins)
    inputs = field.encoding.out_dim
    found, views = _scratch(capacity, inputs, device)
    # In one, since they begin with 0.
    counters, ends = torch.zeros(number + 3, dtype=torch.int64, device=device).split([2, number + 1])
    counts, looked_up = (torch.empty(number, dtype=torch.int64, device=device) for _ in range(2))
    lost = torch.empty(number, dtype=torch.uint8, device=device)
    if number:
        first, second = (weight.detach().contiguous() for weight in field.density_net.parameters())
        search_kernel[(number,)](
            *(tensor.contiguous() for tensor in (rays.origins, rays.directions, rays.starts, rays.fars)),
            _numbers(rays.step_size, rays.cone_angle, device),
            torch.cat([grid.center, grid.half_extent.reciprocal()]),
            grid.binaries.contiguous().view(torch.uint8), grid.mean_there(),
            field.encoding.table.detach(), *on_device(field.encoding.levels, device), first, second,
            *found, counters, counts, lost, looked_up, rays.starts if observed is None else observed,
            grid.levels, grid.resolution, rays.step_size, limits.early_stop, limits.alpha_threshold, capacity,
            CONE=rays.cone_angle > 0, CONTRACTS=contracts, OBSERVES=observed is not None,
            F=field.encoding.table.shape[1], HIDDEN=len(first), **_widths(inputs), **_search_options(inputs),
        )  # fmt: skip
    torch.cumsum(counts, 0, out=ends[1:])
    offsets, kept = torch.empty_like(ends), rays.starts.new_empty(number)
    order_kernel[(triton.cdiv(max(capacity, number + 1), _BLOCK),)](
        *found, counters, ends, lost, *views, offsets, kept, report, capacity, number, **_widths(inputs),
        BLOCK=_BLOCK, num_warps=2,
    )  # fmt: skip
    ray_indices, t_starts, t_ends, t_middles, *rest = views
    samples = PackedSamples(t_starts, t_ends, ray_indices, offsets, t_middles)
    units, outputs, features = rest
    return Found(samples, units, outputs, features, kept, looked_up)


def _widths(inputs: int) -> dict[str, int]:
    return {"INPUTS": inputs, "IN": max(triton.next_power_of_2(inputs), 16), "OUT": GEOMETRY_DIM}


def _search_options(inputs: int) -> dict[str, Any]:
    # As few warps as the registers suffice for. Without fused multiply-adds, the same points are marched as everywhere
    # else.
    warps = {16: 1, 32: 2, 64: 8}[_widths(inputs)["IN"]]
    sizes = {"POINTS": 64, "ROWS": 16, "UNITS": 16, "PRECISION": "ieee" if torch.version.hip else "tf32x3"}
    return sizes | {"num_warps": warps, "enable_fp_fusion": False}


def _scratch(capacity: int, inputs: int, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """What `search_kernel` writes, not filled; and what `order_kernel` makes of it, filled with zeros in one launch."""
    found = [torch.empty(capacity, 2, dtype=torch.int32, device=device)]
    found += [torch.empty(capacity, width, device=device) for width in (3, 3, GEOMETRY_DIM, inputs)]
    widths = [2, 1, 1, 1, 3, GEOMETRY_DIM, inputs]
    parts = torch.zeros(capacity * sum(widths), device=device).split([capacity * width for width in widths])
    indices, t_starts, t_ends, t_middles, *rows = parts
    rest = [part.view(capacity, width) for part, width in zip(rows, widths[4:], strict=True)]
    return found, [indices.view(torch.int64), t_starts, t_ends, t_middles, *rest]


@lru_cache(maxsize=8)
def _numbers(step_size: float, cone_angle: float, device: torch.device) -> Tensor:
    return torch.tensor([step_size, cone_angle, math.log2(1.0 + cone_angle)], dtype=torch.float64).to(device)
