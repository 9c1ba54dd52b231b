"""Longer intervals where little happens: neighbouring samples become one while they are thin together.

On a ray, intervals i, i + 1, ... that touch one another are merged, front to back, as long as

    sum of x_i <= limit   and   their number <= most,    x_i = thickness of the voxel * interval's length / dt,

the thickness being what the occupancy grid remembers (the greatest of late, so that x is rather too large). A voxel
that was never visited counts as limit / UNKNOWN_MERGED. A surface, which is thicker than the limit in one step, is
sampled as finely as before; the fog in front of it, and all of the scene before it is known, costs a fraction.

With a map of hardness (`hardness_map`) the strides s_c of the cells take the place of thickness,

    sum of 1 / s_c <= 1   and   their number <= most:

s_c intervals become one where the stride is the same, and an interval of stride 1 stays alone.

The merged interval is as long as its parts; its sample lies anywhere in it, drawn uniformly, so that the optical
thickness it stands for is right in the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hardmine_ns.marching.cpu import merging as cpu
from hardmine_ns.marching.hardness_map import UNKNOWN_STRIDE
from hardmine_ns.marching.occupancy import OccupancyGrid, locate
from hardmine_ns.marching.samples import PackedSamples
from ns_support.kernels.backend import triton_module

UNKNOWN_MERGED = 4
"""Intervals that become one where the grid was never visited."""
WHOLE = 1.0001
"""Greatest sum of 1 / s: 1 and what rounding may add."""


@torch.no_grad()
def merge_thin(
    samples: PackedSamples,
    origins: Tensor,
    directions: Tensor,
    grid: OccupancyGrid,
    step_size: float,
    *,
    limit: float = 0.04,
    most: int = 8,
    hardness: tuple[Tensor, float] | None = None,
) -> PackedSamples:
    """Merge samples where the grid knows of little. No gradient flows through it.

    Numba's kernel finds the groups on a CPU, Triton's on CUDA; `starts_of_groups_torch` defines them.

    Args:
        samples: M intervals as `march_rays` returns them.
        origins: [R, 3] float32 of the rays, scene units.
        directions: [R, 3] float32, of unit length.
        grid: on the same device, through which they were marched.
        step_size: dt > 0, scene units: the step that the grid's thickness is of.
        limit: greatest optical thickness of a merged interval, > 0 (dimensionless).
        most: greatest number of intervals that become one, >= 1; 1 changes nothing.
        hardness: [cells] of the grid, negative where it is not known, and its mean (`HardnessMap.known`): intervals are
            merged by it and not by thickness. On a CPU only.

    Returns:
        The merged intervals, with the places of their samples.

    Raises:
        ValueError: limit, step size or number is out of its range, or there is a hardness on another device than a CPU.
        ImportError: the rays are on CUDA, and Triton is missing; the message says what to install.
    """
    if limit <= 0 or step_size <= 0 or most < 1:
        raise ValueError(f"limit and step size must be > 0 and most >= 1, got {limit}, {step_size} and {most}")
    if most == 1 or len(samples) == 0:
        return samples
    if hardness is not None and origins.device.type != "cpu":
        raise ValueError(f"samples are merged by hardness on a CPU only, got rays on {origins.device}")
    if origins.device.type == "cpu":
        numbers = (limit, UNKNOWN_MERGED, most) if hardness is None else (WHOLE, UNKNOWN_STRIDE, most)
        firsts = cpu.starts_of_groups(samples, (origins, directions), grid, step_size, numbers, hardness)
    else:
        thickness = expected_thickness(samples, origins, directions, grid, step_size, limit)
        firsts = starts_of_groups_triton(samples, thickness, limit, most)
    return _merged(samples, torch.nonzero(firsts)[:, 0])


def expected_thickness(
    samples: PackedSamples,
    origins: Tensor,
    directions: Tensor,
    grid: OccupancyGrid,
    step_size: float,
    limit: float,
) -> Tensor:
    """Optical thickness x [M] of intervals by the grid; arguments as for `merge_thin`."""
    cells, _ = locate(samples.positions(origins, directions), grid)
    known = grid.thickness[cells]
    lengths = (samples.t_ends - samples.t_starts) * (1.0 / step_size)
    return torch.where(known < 0, limit / UNKNOWN_MERGED, known * lengths)


def starts_of_groups_triton(samples: PackedSamples, thickness: Tensor, limit: float, most: int) -> Tensor:
    """`reference.starts_of_groups_torch` by the Triton kernel on a GPU.

    Raises:
        ImportError: Triton is missing; the message says what to install.
    """
    gpu = triton_module("hardmine_ns.marching.gpu.marching", "ray marching on a GPU")
    firsts: Tensor = gpu.starts_of_groups(samples, thickness, limit, most)
    return firsts


def _merged(samples: PackedSamples, firsts: Tensor) -> PackedSamples:
    """The groups that begin at the samples `firsts` [n] int64, ascending."""
    behind = torch.cat([firsts[1:], firsts.new_full((1,), len(samples))])
    t_starts, t_ends = samples.t_starts[firsts], samples.t_ends[behind - 1]
    # One that stands alone keeps its middle: the jitter of the ray moves it by as much already.
    places = torch.rand_like(t_starts).masked_fill(behind - firsts == 1, 0.5)
    offsets = torch.searchsorted(firsts, samples.offsets)
    middles = t_starts + places * (t_ends - t_starts)
    return PackedSamples(t_starts, t_ends, samples.ray_indices[firsts], offsets, middles)
