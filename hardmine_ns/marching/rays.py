"""Ray marching through an occupancy grid.

Conventions (nerfacc's): samples are the intervals of a lattice anchored at the ray's near end, and an interval is kept
when its midpoint lies in an occupied voxel before the far end.

    t_0 = near,  t_{k+1} = t_k + max(dt, cone t_k);  interval k = [t_k, t_{k+1}),  midpoint m_k = (t_k + t_{k+1}) / 2

The recurrence has a closed form, so that any k can be reached at once: with k0 the first k where cone t_k > dt,

    t_k = near + k dt  for k <= k0,    t_k = t_k0 (1 + cone)^(k - k0)  for k > k0

The grid is a nest of boxes around one centre, each twice the size of the one before and all of the same resolution; a
point belongs to the smallest box that holds it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hardmine_ns.marching.cpu import marching as cpu
from hardmine_ns.marching.lattice import RayLattices, cone_switch, lattice_range
from hardmine_ns.marching.occupancy import OccupancyGrid
from hardmine_ns.marching.samples import PackedSamples
from ns_support.errors import UserError
from ns_support.kernels.backend import triton_module


@torch.no_grad()
def march_rays(
    origins: Tensor,
    directions: Tensor,
    nears: Tensor,
    fars: Tensor,
    grid: OccupancyGrid,
    *,
    step_size: float,
    cone_angle: float = 0.0,
    jitter: Tensor | None = None,
) -> PackedSamples:
    """Sample the occupied part of every ray. No gradient flows through the sampling.

    Numba's kernels do it on a CPU, Triton's on CUDA; `march_rays_torch` is what they are tested against.

    Args:
        origins: [R, 3] float32.
        directions: [R, 3] float32, of unit length.
        nears: [R] distances at which the rays' lattices start.
        fars: [R] distances behind which no midpoint lies.
        grid: on the same device.
        step_size: dt > 0, scene units: the smallest step.
        cone_angle: growth of the step with distance, >= 0 (dimensionless). 0 for steps of one length.
        jitter: [R] in [0, 1): shift of each ray's lattice, in smallest steps. None for no shift.

    Returns:
        The samples, sorted by ray and along each ray.

    Raises:
        ValueError: for rays that are not [R, 3] float32, a step that is not positive, or a negative cone angle.
        UserError: for rays on another kind of device.
        ImportError: for rays on CUDA without Triton; the message says what to install.
    """
    if origins.shape != directions.shape or origins.dim() != 2 or origins.shape[-1] != 3:
        raise ValueError(f"rays must be [R, 3], got {list(origins.shape)} and {list(directions.shape)}")
    if origins.dtype != torch.float32 or directions.dtype != torch.float32:
        raise ValueError(f"rays must be float32, got {origins.dtype} and {directions.dtype}")
    if step_size <= 0 or cone_angle < 0:
        raise ValueError(f"step size must be > 0 and cone angle >= 0, got {step_size} and {cone_angle}")
    starts = nears if jitter is None else nears + jitter * step_size
    rays = RayLattices(origins, directions, starts, fars, step_size, cone_angle)
    if origins.device.type == "cpu":
        return PackedSamples(*cpu.march(rays, grid))
    if origins.device.type != "cuda":
        raise UserError(
            f"Rays are marched on a CPU or on CUDA, got the device {origins.device}: "
            "train and render with --machine.device-type cpu."
        )
    return march_rays_triton(rays, grid)


def march_rays_triton(rays: RayLattices, grid: OccupancyGrid) -> PackedSamples:
    """`march_rays` by the Triton kernels on a GPU.

    Args:
        rays: the rays, the jitter already in their starts.
        grid: on the same device.

    Raises:
        ImportError: Triton is missing; the message says what to install.
    """
    gpu = triton_module("hardmine_ns.marching.gpu.marching", "ray marching on a GPU")
    first, count = lattice_range(rays, grid)
    # Without a cone nothing switches, and the kernel does not look.
    switch = cone_switch(rays.starts, rays.step_size, rays.cone_angle) if rays.cone_angle > 0 else (first, first)
    rays = rays._replace(fars=rays.fars.to(rays.starts.dtype))
    samples: PackedSamples = gpu.march(rays, grid, first, first + count, switch)
    return samples
