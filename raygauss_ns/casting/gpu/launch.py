"""The caster on a GPU: launchers of the Triton kernels, and the order in which rays are cast.

Importing this module needs Triton 3.2 or newer (for `gather`); `casting.cast` reports it if it is missing.

The slab of the kernels has 8 samples, or 4 if `samples_per_slab` is less than 8: what fits the registers of a lane
without spilling. Nothing here synchronizes with the device, since no size depends on a value that only the device
knows. (Building tile lists does, once: see `LISTS`.)
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raygauss_ns.casting.gpu.bvh import GpuBvh, build_gpu_bvh, gather_records
from raygauss_ns.casting.gpu.kernels import backward_kernel, forward_kernel
from raygauss_ns.casting.gpu.packets import RAYS, TILE_HEIGHT, TILE_WIDTH
from raygauss_ns.casting.gpu.tile_lists import GpuLists, build_gpu_lists
from raygauss_ns.casting.morton import interleave
from raygauss_ns.casting.types import CastSettings, Rays, WhitenedGaussians

SLABS = (4, 8)
"""Slab sizes that the kernels support (samples). 16 would need 64 registers for the sums alone."""

LISTS = os.environ.get("RAYGAUSS_GPU_LISTS") == "1"
"""Whether images are cast with lists of each tile's Gaussians instead of the BVH, where such lists are possible. A
switch for comparing the two; off until they have been compared on a GPU."""


class GpuScene(NamedTuple):
    """The Gaussians as the kernels take them.

    Attributes:
        bvh: records and BVH; with lists, its only node is the root.
        lists: those of the image's tiles; None: the BVH is traversed.
    """

    bvh: GpuBvh
    lists: GpuLists | None


class GpuRays(NamedTuple):
    """R rays as tensors on one device, and how to group them.

    Attributes:
        origins: [R, 3] float32.
        directions: [R, 3] float32, unit length.
        nears: [R] float32.
        ends: [R] int32, number of samples of each ray; with the adaptive step float32, the distance at which it ends.
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


def scene_and_rays(
    gaussians: WhitenedGaussians, rays: Rays, ends: Tensor, settings: CastSettings
) -> tuple[GpuScene, GpuRays]:
    """N > 0 Gaussians and R > 0 rays as the kernels take them.

    Args:
        gaussians: the Gaussians.
        rays: the rays; incoherent ones are sorted by where they cross the Gaussians' box.
        ends: [R] as in `GpuRays`.
        settings: how they are sampled.
    """
    means, whitenings, densities, colors = (tensor.detach().float() for tensor in gaussians)
    origins, directions, nears = (tensor.detach().float().contiguous() for tensor in rays[:3])
    ends = (ends.float() if settings.grows else ends).detach().contiguous()
    image_width = rays.image_width
    if LISTS and image_width > 0 and not settings.grows:
        bvh = gather_records(means, whitenings, densities, colors, settings.density_threshold)
        slab_length = slab_of(settings) * settings.step
        lists = build_gpu_lists(
            bvh.records, bvh.squared_cutoff, origins, directions, nears, ends, image_width, slab_length
        )
        if lists is not None:
            return GpuScene(bvh, lists), GpuRays(origins, directions, nears, ends, bvh.order[:0], image_width)
    bvh = build_gpu_bvh(means, whitenings, densities, colors, settings.density_threshold)
    order = coherent_order(origins, directions, bvh.boxes[0]) if image_width == 0 else bvh.order[:0]
    return GpuScene(bvh, None), GpuRays(origins, directions, nears, ends, order, image_width)


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


def rays_and_records(scene: GpuScene, rays: GpuRays) -> tuple[object, ...]:
    """The arguments that the kernels of either step begin with."""
    bvh = scene.bvh
    lines = (rays.origins, rays.directions, rays.nears, rays.ends, rays.order, len(rays.nears), rays.width)
    return *lines, bvh.records, bvh.squared_cutoff, bvh.boxes


def _arguments(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> tuple[object, ...]:
    """The arguments that both kernels begin with."""
    step = np.float32(settings.step)
    bvh, lists = scene
    if lists is None:
        candidates = (bvh.links, len(bvh.links), bvh.links, bvh.boxes, 0)  # starts and shells are unused: any pointers
    else:
        candidates = (lists.entries, 0, lists.starts, lists.shells, (len(lists.starts) - 1) // rays.packets)
    return (
        *rays_and_records(scene, rays),
        *candidates,
        float(step),
        settings.step - float(step),  # the rounding error: Triton passes a number as float32
        settings.sample_offset,
        settings.density_threshold,
        settings.transmittance_threshold,
    )


def slab_of(settings: CastSettings) -> int:
    """The number of samples that the kernels process together."""
    return max((slab for slab in SLABS if slab <= settings.samples_per_slab), default=SLABS[0])


def _constants(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> dict[str, int]:
    """The compile-time constants of both kernels."""
    return {"K": slab_of(settings), "TILED": rays.width > 0, "LISTED": scene.lists is not None, "num_warps": 1}


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
    forward_kernel[(rays.packets,)](*_arguments(scene, rays, settings), out, **_constants(scene, rays, settings))
    return out


def cast_backward(scene: GpuScene, rays: GpuRays, settings: CastSettings, out: Tensor, grad_out: Tensor) -> Tensor:
    """Gradients of a loss on the outputs, as 13 moments per Gaussian; float32 values are added in no fixed order.

    Args:
        scene: the Gaussians.
        rays: the rays, at least one.
        settings: as in the forward pass.
        out: [R, 5] what the forward pass returned.
        grad_out: [R, 5] gradient of the loss with respect to that.

    Returns:
        [N, 13] float32, in the Gaussians' original order; `casting.moments` defines the sums.
    """
    sums = torch.zeros_like(scene.bvh.records)
    backward_kernel[(rays.packets,)](
        *_arguments(scene, rays, settings), out, grad_out, sums, **_constants(scene, rays, settings)
    )
    moments = torch.empty_like(sums)
    moments[scene.bvh.order] = sums
    return moments[:, :13]
