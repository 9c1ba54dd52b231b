"""The caster on a GPU: launchers of the Triton kernels, and the order in which rays are cast.

Importing this module needs Triton 3.2 or newer (its `gather`); `casting.cast` says so where it is missing.

The slab of the kernels is 8 samples, or 4 where `samples_per_slab` is smaller: what fits the registers of a lane
without spilling. Nothing here waits for the device: no size depends on a value that only the device knows. (Lists do,
once: see `LISTS`.)
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
"""Samples of a slab that the kernels are built for. 16 would need 64 registers for the sums alone."""

LISTS = os.environ.get("RAYGAUSS_GPU_LISTS") == "1"
"""Whether images are cast by lists of their tiles' Gaussians, where those can serve, instead of the hierarchy. A switch
for comparing the two, off until they have been compared on a GPU."""


class GpuScene(NamedTuple):
    """The Gaussians as the kernels take them.

    Attributes:
        bvh: records and hierarchy; without nodes but the root where there are lists.
        lists: of the image's tiles, or None where the hierarchy is walked.
    """

    bvh: GpuBvh
    lists: GpuLists | None


class GpuRays(NamedTuple):
    """R rays as tensors on one device, and how to group them.

    Attributes:
        origins: [R, 3] float32.
        directions: [R, 3] float32, unit length.
        nears: [R] float32.
        ends: [R] int32, samples of each ray; where the step grows float32, the distance at which it ends.
        order: [R] int64, the order in which rays are put into packets; of no use to an image.
        width: pixels of an image row when the rays are an image, row by row; 0 for rays of no order.
    """

    origins: Tensor
    directions: Tensor
    nears: Tensor
    ends: Tensor
    order: Tensor
    width: int

    @property
    def packets(self) -> int:
        """How many packets the rays fill."""
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
        lists = build_gpu_lists(bvh.records, bvh.reach, origins, directions, nears, ends, image_width, slab_length)
        if lists is not None:
            return GpuScene(bvh, lists), GpuRays(origins, directions, nears, ends, bvh.order[:0], image_width)
    bvh = build_gpu_bvh(means, whitenings, densities, colors, settings.density_threshold)
    order = coherent_order(origins, directions, bvh.boxes[0]) if image_width == 0 else bvh.order[:0]
    return GpuScene(bvh, None), GpuRays(origins, directions, nears, ends, order, image_width)


@torch.no_grad()
def coherent_order(origins: Tensor, directions: Tensor, box: Tensor) -> Tensor:
    """An order in which neighbouring rays cross a box nearly alike.

    By the Morton code of six numbers, the points at which a ray enters and leaves the box: rays that share them share
    everything the box holds. Rays that miss it come last.

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
    # 10 bits of each of the two points' codes, interleaved by doubling the distance between bits.
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


def _arguments(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> tuple[object, ...]:
    """What both kernels take first."""
    step = np.float32(settings.step)
    bvh, lists = scene
    if lists is None:
        candidates = (bvh.links, len(bvh.links), bvh.links, bvh.boxes, 0)  # no starts, no shells: any pointers
    else:
        candidates = (lists.entries, 0, lists.starts, lists.shells, (len(lists.starts) - 1) // rays.packets)
    return (
        rays.origins,
        rays.directions,
        rays.nears,
        rays.ends,
        rays.order,
        len(rays.nears),
        rays.width,
        bvh.records,
        bvh.reach,
        bvh.boxes,
        *candidates,
        float(step),
        settings.step - float(step),  # Triton passes a number as float32: the rest of the step
        settings.sample_offset,
        settings.density_threshold,
        settings.transmittance_threshold,
    )


def slab_of(settings: CastSettings) -> int:
    """How many samples the kernels process together."""
    return max((slab for slab in SLABS if slab <= settings.samples_per_slab), default=SLABS[0])


def _constants(scene: GpuScene, rays: GpuRays, settings: CastSettings) -> dict[str, int]:
    """What both kernels are compiled for."""
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
    """Gradients of a loss on the outputs, as 13 moments per Gaussian; sums of float32 in no fixed order.

    Args:
        scene: the Gaussians.
        rays: the rays, at least one.
        settings: as in the forward pass.
        out: [R, 5] what the forward pass returned.
        grad_out: [R, 5] gradient of the loss with respect to that.

    Returns:
        [N, 13] float32, in the Gaussians' own order; `autograd` states the sums.
    """
    sums = torch.zeros_like(scene.bvh.records)
    backward_kernel[(rays.packets,)](
        *_arguments(scene, rays, settings), out, grad_out, sums, **_constants(scene, rays, settings)
    )
    moments = torch.empty_like(sums)
    moments[scene.bvh.order] = sums
    return moments[:, :13]
