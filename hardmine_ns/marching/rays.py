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

from dataclasses import dataclass

import torch
from torch import Tensor

from hardmine_ns.marching import cpu
from hardmine_ns.marching.occupancy import OccupancyGrid, locate
from ns_support.errors import UserError

_LATTICE_POINTS_AT_ONCE = 1 << 22
"""Lattice points that the PyTorch version looks at together: about 200 MB of temporaries."""


@dataclass(frozen=True)
class PackedSamples:
    """Intervals on rays, sorted by ray and along each ray."""

    t_starts: Tensor
    """[M] distance of each interval's start from its ray's origin, in units of the direction's length."""
    t_ends: Tensor
    """[M] its end."""
    ray_indices: Tensor
    """[M] int64, ascending."""
    offsets: Tensor
    """[R + 1] int64: ray r owns the samples offsets[r] to offsets[r + 1]."""

    def __len__(self) -> int:
        return self.t_starts.shape[0]

    @property
    def num_rays(self) -> int:
        """Number of rays R, with and without samples."""
        return self.offsets.shape[0] - 1

    @property
    def midpoints(self) -> Tensor:
        """[M] distance of each interval's middle."""
        return (self.t_starts + self.t_ends) * 0.5

    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Midpoints in space, [M, 3], for the rays' origins [R, 3] and directions [R, 3]."""
        along = directions.index_select(0, self.ray_indices)
        return origins.index_select(0, self.ray_indices).addcmul_(along, self.midpoints[:, None])

    def select(self, rows: Tensor) -> PackedSamples:
        """Keep some samples.

        Args:
            rows: [n] int64, ascending indices of the samples to keep.
        """
        return pack(self.t_starts[rows], self.t_ends[rows], self.ray_indices[rows], self.num_rays)


def pack(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, num_rays: int) -> PackedSamples:
    """Find each ray's share of samples that are sorted by ray; shapes as in `PackedSamples`."""
    offsets = torch.searchsorted(ray_indices, torch.arange(num_rays + 1, device=ray_indices.device))
    return PackedSamples(t_starts, t_ends, ray_indices, offsets)


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
    if origins.device.type == "cpu":
        arrays = cpu.march(origins, directions, starts, fars, grid, step_size, cone_angle)
        return PackedSamples(*arrays)
    if origins.device.type != "cuda":
        raise UserError(
            f"Rays are marched on a CPU or on CUDA, got the device {origins.device}: "
            "train and render with --machine.device-type cpu."
        )
    return march_rays_triton(origins, directions, starts, fars, grid, step_size, cone_angle)


def march_rays_triton(
    origins: Tensor,
    directions: Tensor,
    starts: Tensor,
    fars: Tensor,
    grid: OccupancyGrid,
    step_size: float,
    cone_angle: float,
) -> PackedSamples:
    """The Triton kernels on a GPU.

    Args and result are those of `march_rays`, with the jitter already in `starts`.

    Raises:
        ImportError: Triton is missing; the message says what to install.
    """
    try:
        from hardmine_ns.marching import gpu
    except (ImportError, AttributeError) as error:  # AttributeError: a Triton too old for what the kernels use
        raise ImportError(
            f'ray marching on a GPU needs Triton 3.2 or newer ({error}): pip install "triton>=3.2" (on Windows: '
            '"triton-windows>=3.2")'
        ) from error
    first, count = _lattice_range(origins, directions, starts, fars, grid, step_size, cone_angle)
    # Without a cone nothing switches, and the kernel does not look.
    switch = cone_switch(starts, step_size, cone_angle) if cone_angle > 0 else (first, first)
    rays = (origins, directions, starts, fars.to(starts.dtype))
    return PackedSamples(*gpu.march(*rays, grid, step_size, cone_angle, first, first + count, switch))


def _lattice_range(
    origins: Tensor,
    directions: Tensor,
    starts: Tensor,
    fars: Tensor,
    grid: OccupancyGrid,
    step_size: float,
    cone_angle: float,
) -> tuple[Tensor, Tensor]:
    """Index of the first interval of each ray that may be in the outermost box, and how many may: [R] int64."""
    enter, leave = box_interval(origins, directions, grid)
    # One step of slack on both sides: the midpoint decides, and these bounds are rounded.
    first = (lattice_index(enter, starts, step_size, cone_angle) - 1).clamp(min=0)
    count = lattice_index(torch.minimum(leave, fars), starts, step_size, cone_angle) + 2 - first
    hit = torch.minimum(leave, fars) > torch.maximum(enter, starts)
    return first, torch.where(hit, count, 0).clamp(min=0)


def march_rays_torch(
    origins: Tensor,
    directions: Tensor,
    starts: Tensor,
    fars: Tensor,
    grid: OccupancyGrid,
    step_size: float,
    cone_angle: float,
) -> PackedSamples:
    """The PyTorch twin of the Numba kernel: lattice, query, mask, for as many rays at once as memory allows.

    Args and result are those of `march_rays`, with the jitter already in `starts`.
    """
    num_rays = origins.shape[0]
    first, count = _lattice_range(origins, directions, starts, fars, grid, step_size, cone_angle)
    hit = count > 0
    longest = int(count.max()) if num_rays else 0
    steps = torch.arange(longest, device=origins.device)
    pieces = []
    rays_at_once = max(1, _LATTICE_POINTS_AT_ONCE // max(longest, 1))
    for low in range(0, num_rays if longest else 0, rays_at_once):
        rays = slice(low, low + rays_at_once)
        k = first[rays, None] + steps
        t0 = lattice_edge(k, starts[rays, None], step_size, cone_angle)
        t1 = lattice_edge(k + 1, starts[rays, None], step_size, cone_angle)
        middle = (t0 + t1) * 0.5
        cells, inside = locate(origins[rays, None] + middle[..., None] * directions[rays, None], grid)
        keep = inside & hit[rays, None] & (middle < fars[rays, None]) & grid.binaries.view(-1)[cells]
        ray, step = torch.nonzero(keep, as_tuple=True)
        pieces.append((t0[ray, step], t1[ray, step], ray + low))
    if not pieces:
        empty = origins.new_empty(0)
        return pack(empty, empty.clone(), empty.to(torch.int64), num_rays)
    t_starts, t_ends, rays_of = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return pack(t_starts, t_ends, rays_of, num_rays)


def box_interval(origins: Tensor, directions: Tensor, grid: OccupancyGrid) -> tuple[Tensor, Tensor]:
    """Distances [R] at which rays enter and leave the outermost box; the second is smaller where a ray misses it."""
    reach = grid.half_extent * 2.0 ** (grid.levels - 1)
    parallel = directions == 0
    inverse = torch.where(parallel, 1.0, directions).reciprocal()
    low = (grid.center - reach - origins) * inverse
    high = (grid.center + reach - origins) * inverse
    outside = parallel & ((origins - grid.center).abs() >= reach)
    unbounded = torch.full_like(low, float("inf"))
    near = torch.where(parallel, -unbounded, torch.minimum(low, high)).masked_fill(outside, float("inf"))
    far = torch.where(parallel, unbounded, torch.maximum(low, high))
    return near.amax(-1), far.amin(-1)


def lattice_edge(k: Tensor, starts: Tensor, step_size: float, cone_angle: float) -> Tensor:
    """Edge t_k of the lattice, float32, for k int64 >= 0 and starts broadcast against it."""
    linear = starts + k.to(starts.dtype) * step_size
    if cone_angle == 0:
        return linear
    switch, t_switch = cone_switch(starts, step_size, cone_angle)
    grown = t_switch * (1.0 + cone_angle) ** (k - switch).clamp(min=0).to(torch.float64)
    return torch.where(k <= switch, linear, grown.to(starts.dtype))


def cone_switch(starts: Tensor, step_size: float, cone_angle: float) -> tuple[Tensor, Tensor]:
    """k0 and t_k0: where steps begin to grow. int64 and float64."""
    start = starts.to(torch.float64)
    switch = (torch.floor((step_size / cone_angle - start) / step_size) + 1).clamp(min=0)
    return switch.to(torch.int64), start + switch * step_size


def lattice_index(t: Tensor, starts: Tensor, step_size: float, cone_angle: float) -> Tensor:
    """The k >= 0 whose interval holds t, up to rounding; int64."""
    start = starts.to(torch.float64)
    distance = t.to(torch.float64).clamp(-1e9, 1e9)
    k = torch.floor((distance - start) / step_size)
    if cone_angle > 0:
        switch, t_switch = cone_switch(starts, step_size, cone_angle)
        growth = torch.log((distance / t_switch).clamp(min=1.0)) / torch.log1p(torch.tensor(cone_angle).double())
        k = torch.where(k < switch, k, switch + torch.floor(growth))
    return k.clamp(min=0).to(torch.int64)
