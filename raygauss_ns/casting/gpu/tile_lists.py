"""Lists of the Gaussians that the tiles of an image may meet: one list per tile of 8 x 4 pixels and distance shell.

The alternative to the BVH as the source of a slab's candidates, for rays that share their origin: no node is visited,
but the lists must be sorted for each image. A shell is the space between two distances from the origin, several slabs
apart; a sample at distance t lies in the shell of t, whatever the direction of its ray. A single radix sort by
tile * shells + shell builds all lists.

A Gaussian is listed wherever its support may be; none is dropped. Seen from the origin, with c its centre and Q the
matrix of its support (x - c)^T Q^-1 (x - c) <= 1, it lies

    sideways   between the two planes through the origin that touch it and are upright: with L L^T the 2 x 2 part of Q
               and w = L^-1 c, where it is a unit circle, their directions are L R(+-asin(1 / |w|)) w;
    in depth   between |c| - h and ((|c| + h)^2 + r^2)^(1/2), for h^2 = c^T Q c / |c|^2 and r its largest radius.

Planes and distances are widened by more than the rounding error of the kernels' float32. The angles of a tile are those
of its own rays, so that any lens is supported, if not tightly. There are no lists for rays of several origins, for rays
that run sideways or begin behind their origin, and for more entries than `MAX_ENTRIES`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raygauss_ns.casting.gpu.packets import TILE_HEIGHT, TILE_WIDTH

SLABS_PER_SHELL = 4
"""Thickness of a shell, unless that gives too many shells. Not tuned: it has not been measured on a GPU."""
MAX_SHELLS = 256
MAX_ENTRIES = 1 << 26
"""With more, the arrays of the sort would take more than 5 GB."""


class GpuLists(NamedTuple):
    """Lists of an image's T tiles and S shells, M entries in all.

    Attributes:
        entries: [M, 2] int32, by tile, then by shell: record * 2 + (1 in the record's first shell, else 0), shell.
        starts: [T * S + 1] int32: list i of tile * S + shell is entries[starts[i] : starts[i + 1]].
        shells: [2] float32: distance at which the first shell begins, shells per unit of length.
    """

    entries: Tensor
    starts: Tensor
    shells: Tensor


class _Ranges(NamedTuple):
    """Columns of tiles, rows of tiles and shells that each record is listed in: first and number, int64 [N] each."""

    first: tuple[Tensor, Tensor, Tensor]
    number: tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def build_gpu_lists(
    records: Tensor,
    squared_cutoff: Tensor,
    origins: Tensor,
    directions: Tensor,
    nears: Tensor,
    counts: Tensor,
    width: int,
    slab_length: float,
) -> GpuLists | None:
    """List N > 0 Gaussians for an image; synchronizes with the device once, for the number of entries.

    Args:
        records: [N, 16] float32 as in `GpuBvh`.
        squared_cutoff: [N] float32 as in `GpuBvh`.
        origins: [R, 3] float32.
        directions: [R, 3] float32, unit length.
        nears: [R] float32.
        counts: [R] int32, samples of each ray.
        width: pixels of a row > 0.
        slab_length: distance from one slab to the next (length).

    Returns:
        The lists, or None for rays that have none (see above).
    """
    image = directions.double().view(-1, width, 3)
    camera = _camera(image)
    seen = image @ camera.T
    centres = records[:, :3].double() - origins[0].double()
    shapes, radii = _supports(records, squared_cutoff)
    turned = camera @ shapes @ camera.T
    columns = _tile_range(_ray_angles(seen, 0, TILE_WIDTH), *_touching_angles(centres @ camera.T, turned, 0))
    rows = _tile_range(
        _ray_angles(seen.transpose(0, 1), 1, TILE_HEIGHT), *_touching_angles(centres @ camera.T, turned, 1)
    )
    listed = (squared_cutoff >= 0) & (columns[1] > 0) & (rows[1] > 0)

    # Directions count as unit vectors up to 1e-3; t is then a distance with the same relative error.
    lengths = (torch.linalg.vector_norm(image, dim=-1) - 1).abs()
    slack = torch.where(lengths < 1e-3, lengths, 0.0).amax() + 1e-5
    near, far = _distances(centres, shapes, radii)
    first, number, shells, shell_count = _shell_range(near * (1 - slack), far * (1 + slack), listed, slab_length)
    ranges = _Ranges((columns[0], rows[0], first), (columns[1], rows[1], torch.where(listed, number, 0)))

    total = (ranges.number[0] * ranges.number[1] * ranges.number[2]).sum()
    served = (origins == origins[0]).all() & (seen[..., 2] > 0.1).all() & ((nears >= 0) | (counts == 0)).all()
    entries, shell_total, usable = torch.stack([total, shell_count, served.long()]).tolist()
    if not usable or entries > MAX_ENTRIES:
        return None
    tiles = -(-image.shape[1] // TILE_WIDTH), -(-image.shape[0] // TILE_HEIGHT)
    return GpuLists(*_sorted_entries(ranges, tiles, shell_total, entries), shells)


def _camera(image: Tensor) -> Tensor:
    """Unit vectors to the right, down and forward [3, 3] of an image of directions [H, W, 3].

    Exact for a pinhole whose principal point is the image's centre; otherwise the tiles' angles overlap slightly.
    """
    forward = torch.nn.functional.normalize(image.mean((0, 1)), dim=0)
    x, y, z = forward
    across = (image[:, -1] - image[:, 0]).mean(0)
    across = across - (across @ forward) * forward
    zero = torch.zeros_like(x)
    perpendicular = torch.where(x.abs() < 0.9, torch.stack([zero, -z, y]), torch.stack([-y, x, zero]))
    right = torch.nn.functional.normalize(torch.where(across.norm() > 1e-9, across, perpendicular), dim=0)
    down = torch.linalg.cross(forward, right)
    down = torch.where(((image[-1] - image[0]).mean(0) @ down) < 0, -down, down)
    return torch.stack([right, down, forward])


def _supports(records: Tensor, squared_cutoff: Tensor) -> tuple[Tensor, Tensor]:
    """Q [N, 3, 3] and the squared largest radius [N] of ellipsoids that contain the supports; float64."""
    whitenings = records[:, 3:12].double().view(-1, 3, 3)
    axes = whitenings / (whitenings * whitenings).sum(-1, keepdim=True)  # s_i times the unit vector of axis i
    # The sum of an ellipsoid Q and a ball of radius b lies within the ellipsoid (1 + a) Q + (1 + 1 / a) b^2, for any
    # a > 0. Here a = 1e-3, and b = 1e-6 (1 + |mu|) as for the boxes.
    squared = 1.001 * squared_cutoff.double().clamp_min(0)
    ball = 1001 * (1e-6 * (1 + records[:, :3].double().abs().amax(-1))) ** 2
    shapes = squared[:, None, None] * (axes.transpose(-1, -2) @ axes)
    radii = squared * (axes * axes).sum(-1).amax(-1) + ball
    return shapes + torch.diag_embed(ball[:, None].expand(-1, 3)), radii


def _ray_angles(seen: Tensor, axis: int, size: int) -> tuple[Tensor, Tensor]:
    """Least and greatest angle in each strip of `size` columns of rays [H, W, 3]: [ceil(W / size)] each."""
    angles = torch.atan2(seen[..., axis], seen[..., 2])
    padding = (0, -angles.shape[1] % size)
    low = torch.nn.functional.pad(angles.amin(0), padding, value=torch.inf).view(-1, size).amin(1)
    high = torch.nn.functional.pad(angles.amax(0), padding, value=-torch.inf).view(-1, size).amax(1)
    return low, high


def _touching_angles(centres: Tensor, shapes: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Angles [N] between which supports are seen, measured from the forward axis; infinite if they are all around."""
    u, z = centres[:, axis], centres[:, 2]
    l00 = shapes[:, axis, axis].sqrt()
    l10 = shapes[:, axis, 2] / l00
    l11 = (shapes[:, 2, 2] - l10 * l10).clamp_min(1e-30).sqrt()
    w0 = u / l00
    w1 = (z - l10 * w0) / l11
    squared = w0 * w0 + w1 * w1
    sine = squared.clamp_min(1).rsqrt()
    cosine = (1 - sine * sine).clamp_min(0).sqrt()
    middle = torch.atan2(u, z)
    ends = []
    for turn in (sine, -sine):
        v0, v1 = cosine * w0 - turn * w1, turn * w0 + cosine * w1
        difference = torch.atan2(l00 * v0, l10 * v0 + l11 * v1) - middle
        ends.append(middle + torch.remainder(difference + torch.pi, 2 * torch.pi) - torch.pi)
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    # Beyond three quarters of a turn it enters the view again from the other side.
    around = (squared <= 1 + 1e-9) | (low < -1.5 * torch.pi) | (high > 1.5 * torch.pi)
    return torch.where(around, -torch.inf, low), torch.where(around, torch.inf, high)


def _tile_range(strips: tuple[Tensor, Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """First and number [N] of the strips from the first to the last one that overlaps [low, high]."""
    least = strips[0].flip(0).cummin(0).values.flip(0)
    greatest = strips[1].cummax(0).values
    first = torch.searchsorted(greatest, low)
    last = torch.searchsorted(least, high, right=True) - 1
    return first, (last - first + 1).clamp_min(0)


def _distances(centres: Tensor, shapes: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [N] from the origin between which supports lie."""
    distance = torch.linalg.vector_norm(centres, dim=-1)
    toward = centres / distance[:, None].clamp_min(1e-30)
    half = torch.einsum("ni,nij,nj->n", toward, shapes, toward).sqrt()
    return (distance - half).clamp_min(0), ((distance + half) ** 2 + radii).sqrt()


def _shell_range(
    near: Tensor, far: Tensor, listed: Tensor, slab_length: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and number of each record's shells [N], `GpuLists.shells`, and the number of shells, as a tensor."""
    begin = torch.where(listed, near, torch.inf).amin()
    begin = torch.where(begin.isfinite(), begin, 0.0)
    extent = (torch.where(listed, far, 0.0).amax() - begin).clamp_min(0)
    count = (extent / (SLABS_PER_SHELL * slab_length)).ceil().clamp(1, MAX_SHELLS)
    shells = torch.stack([begin, count / extent.clamp_min(1e-30)]).float()
    # In float32 as in the kernels: both put the same distance into the same shell.
    first, last = (
        ((t.float() - shells[0]) * shells[1]).floor().clamp_min(0).minimum(count.float() - 1).nan_to_num(0).long()
        for t in (near, far)
    )
    return first, last - first + 1, shells, count.long()


def _sorted_entries(ranges: _Ranges, tiles: tuple[int, int], shells: int, total: int) -> tuple[Tensor, Tensor]:
    """`GpuLists.entries` and `GpuLists.starts`; `tiles` counts columns and rows of tiles."""
    columns, rows, numbers = ranges.number
    sizes = columns * rows * numbers
    device = sizes.device
    record = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes, output_size=total)
    place = torch.arange(total, device=device) - (sizes.cumsum(0) - sizes)[record]
    shell = place % numbers[record]
    place = place // numbers[record]
    tile = (ranges.first[1][record] + place // columns[record]) * tiles[0]
    tile = tile + ranges.first[0][record] + place % columns[record]
    lists = tiles[0] * tiles[1] * shells
    keys = tile * shells + ranges.first[2][record] + shell
    # int32 keys take half the passes of the radix sort, if they suffice.
    keys, order = torch.sort(keys.int() if lists < 2**31 else keys, stable=True)
    entries = torch.stack([(record * 2 + (shell == 0))[order], keys % shells], dim=1).int()
    edges = torch.arange(lists + 1, device=device, dtype=keys.dtype)
    return entries, torch.searchsorted(keys, edges, out_int32=True)
