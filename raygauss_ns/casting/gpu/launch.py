"""The caster on a GPU: launchers of the Triton kernels, and the order in which rays are cast.

Importing this module needs Triton 3.2 or newer (for `gather`); `casting.cast` reports it if it is missing.

The slab of the kernels has 8 samples, or 4 if `samples_per_slab` is less than 8: what fits the registers of a lane
without spilling. Nothing here synchronizes with the device, since no size depends on a value that only the device
knows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raygauss_ns.casting.gpu.building import hierarchy_of
from raygauss_ns.casting.gpu.geometry import ray_ends
from raygauss_ns.casting.gpu.hierarchy import GpuHierarchy
from raygauss_ns.casting.gpu.kernels import backward_kernel, collect_kernel, forward_kernel
from raygauss_ns.casting.gpu.packets import RAYS, TILE_HEIGHT, TILE_WIDTH
from raygauss_ns.casting.morton import interleave
from raygauss_ns.casting.types import CastSettings, Rays

SLABS = (4, 8)
"""Slab sizes that the kernels support (samples). 16 would need 64 registers for the sums alone."""

CAPACITY = 512
"""Entries of a packet's list, a multiple of 32. Where more are needed, the march opens windows in depth. Packets of
trained scenes need 50 to 170 on average, some 900 (`docs/gpu.md`). Not tuned: it has not been measured on a GPU."""
MOST_LISTED = 1 << 30
"""Bytes of all lists: for images larger than 5.6 million pixels, lists are shorter."""


class GpuLists(NamedTuple):
    """The lists of P packets, with room for C entries each; `lists` says what is in them.

    Attributes:
        intervals: [P, 2, C] float32, the distances between which an entry is met.
        entries: [P, C] int32, records.
        lengths: [P] int32, entries of a list that holds all that the packet's rays meet; else -1.
    """

    intervals: Tensor
    entries: Tensor
    lengths: Tensor


class GpuScene(NamedTuple):
    """The Gaussians as the kernels take them, and where they note which of them each packet meets."""

    hierarchy: GpuHierarchy
    lists: GpuLists


class GpuRays(NamedTuple):
    """R rays as tensors on one device, and how to group them.

    Attributes:
        origins: [R, 3] float32.
        directions: [R, 3] float32, unit length.
        nears: [R] float32.
        ends: [R] int32, number of samples of each ray; with the adaptive step float32, the distance at which it ends.
            `geometry.BROKEN` for a ray that is to become NaN.
        order: [R] int64, the order in which rays are put into packets; not used for an image.
        width: pixels of an image row if the rays are an image, row by row; 0 for incoherent rays.
    """

    origins: Tensor
    directions: Tensor
    nears: Tensor
    ends: Tensor
    order: Tensor
    width: int

    @property
    def packets(self) -> int:
        """The number of packets that the rays fill."""
        if self.width == 0:
            return -(-len(self.nears) // RAYS)
        return -(-(len(self.nears) // self.width) // TILE_HEIGHT) * -(-self.width // TILE_WIDTH)


def scene_and_rays(parameters: tuple[Tensor, ...], rays: Rays, settings: CastSettings) -> tuple[GpuScene, GpuRays]:
    """N > 0 Gaussians and R > 0 rays as the kernels take them.

    Args:
        parameters: as for `building.hierarchy_of`.
        rays: the rays; incoherent ones are sorted by where they cross the Gaussians' box.
        settings: how they are sampled.
    """
    origins, directions, nears, ends = ray_ends(rays, settings)
    hierarchy = hierarchy_of(parameters, settings.density_threshold)
    incoherent = rays.image_width == 0
    order = coherent_order(origins, directions, hierarchy.bounds) if incoherent else hierarchy.order[:0]
    device_rays = GpuRays(origins, directions, nears, ends, order, rays.image_width)
    return GpuScene(hierarchy, empty_lists(device_rays)), device_rays


def empty_lists(rays: GpuRays) -> GpuLists:
    """Room for the lists of the rays' packets."""
    capacity = CAPACITY
    while capacity > 32 and 12 * capacity * rays.packets > MOST_LISTED:
        capacity //= 2
    return GpuLists(
        rays.nears.new_empty(rays.packets, 2, capacity),
        torch.empty(rays.packets, capacity, dtype=torch.int32, device=rays.nears.device),
        torch.empty(rays.packets, dtype=torch.int32, device=rays.nears.device),
    )


@torch.no_grad()
def coherent_order(origins: Tensor, directions: Tensor, box: Tensor) -> Tensor:
    """An order in which neighbouring rays take similar paths through a box.

    Rays are sorted by the Morton code of six numbers, the points at which they enter and leave the box: rays that agree
    in both cross the same part of the scene. Rays that miss the box come last.

    Args:
        origins: [R, 3].
        directions: [R, 3].
        box: [6] lower and upper corner.

    Returns:
        [R] int64, a permutation.
    """
    lower, upper = box[:3], box[3:]
    inverse = torch.where(directions.abs() < 1e-20, 1e-20, directions).reciprocal()
    a, b = (lower - origins) * inverse, (upper - origins) * inverse
    enter = torch.minimum(a, b).amax(-1).clamp_min(0)
    leave = torch.maximum(a, b).amin(-1)
    points = torch.stack([enter, leave], 1)[..., None] * directions[:, None] + origins[:, None]
    cells = ((points - lower) / (upper - lower) * 1023).nan_to_num(0).clamp(0, 1023).long()
    # The codes of the two points, 10 bits per axis, are interleaved: bits are spread to twice their distance.
    codes = _spread(interleave(cells))
    code = codes[:, 0] | (codes[:, 1] << 1)
    return torch.argsort(torch.where(leave >= enter, code, torch.iinfo(torch.int64).max))


def _spread(codes: Tensor) -> Tensor:
    """Bit b of each code (30 bits) becomes bit 2 b."""
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        codes = (codes | (codes << shift)) & mask
    return codes


def rays_and_scene(scene: GpuScene, rays: GpuRays) -> tuple[object, ...]:
    """The arguments that the kernels of either step begin with."""
    hierarchy, lists = scene
    lines = (rays.origins, rays.directions, rays.nears, rays.ends, rays.order, len(rays.nears), rays.width)
    gaussians = (hierarchy.records, hierarchy.squared_cutoff, hierarchy.bounds, hierarchy.blocks)
    first, second, third, roots = hierarchy.sizes
    return *lines, *gaussians, first, first + second, first + second + third, roots, *lists, lists.entries.shape[1]


def _arguments(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> tuple[object, ...]:
    """The arguments that both kernels begin with."""
    step = np.float32(settings.step)
    return (
        *rays_and_scene(scene, rays),
        float(step),
        settings.step - float(step),  # the rounding error: Triton passes a number as float32
        settings.sample_offset,
        settings.density_threshold,
        settings.transmittance_threshold,
    )


def slab_of(settings: CastSettings) -> int:
    """The number of samples that the kernels process together."""
    return max((slab for slab in SLABS if slab <= settings.samples_per_slab), default=SLABS[0])


def launch_both(kernel: Any, rays: GpuRays, settings: CastSettings, arguments: tuple[object, ...]) -> None:
    """Launch a kernel for the packets whose list holds all that their rays meet, and then for the others."""
    for windowed in (False, True):
        kernel[(rays.packets,)](*arguments, K=slab_of(settings), TILED=rays.width > 0, WINDOWED=windowed, num_warps=1)


def collect_lists(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> None:
    """Write the packets' lists."""
    arguments = _arguments(scene, rays, settings)[:-2]
    collect_kernel[(rays.packets,)](*arguments, TILED=rays.width > 0, num_warps=1)


def cast_forward(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> Tensor:
    """Cast R > 0 rays.

    Args:
        scene: the Gaussians.
        rays: the rays.
        settings: how they are sampled.

    Returns:
        [R, 5] float32: red, green, blue, transmittance, depth.
    """
    out = rays.nears.new_empty(len(rays.nears), 5)
    collect_lists(scene, rays, settings)
    launch_both(forward_kernel, rays, settings, (*_arguments(scene, rays, settings), out))
    return out


def cast_backward(scene: GpuScene, rays: GpuRays, settings: CastSettings, out: Tensor, grad_out: Tensor) -> Tensor:
    """Gradients of a loss on the outputs, as 13 moments per record; float32 values are added in no fixed order.

    Args:
        scene: the Gaussians.
        rays: the rays, at least one.
        settings: as in the forward pass.
        out: [R, 5] what the forward pass returned.
        grad_out: [R, 5] gradient of the loss with respect to that.

    Returns:
        [N, 16] float32: the sums that `casting.moments` defines, and three numbers that mean nothing.
    """
    sums = torch.zeros_like(scene.hierarchy.records)
    launch_both(backward_kernel, rays, settings, (*_arguments(scene, rays, settings), out, grad_out, sums))
    return sums
