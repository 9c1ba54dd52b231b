"""Hard-sample mining with an unmodified field of nerfstudio: that of nerfacto. Both kinds: points, and rays.

`mined_outputs` is the complete integration of the first, `mined_step` of both: a training step to copy. Run as a
script (`python examples/mine_nerfacto.py`, under a minute on a CPU), this file prints how many bytes of activations are
saved for the backward pass on random rays, for each mining rule; then it trains on a small scene that `make_scene.py`
draws, with either kind, both and none, and prints what each brings in as many steps. So short a training says what is
saved; another seed changes the PSNR by as much as mining does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from make_scene import BOUND, CAMERA_ANGLE_X, CAMERA_RADIUS, cameras, draw
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from nerfstudio.fields.nerfacto_field import NerfactoField
from torch import Tensor

from hardmine_ns.mining import BlockMemory, HardSampleMining, undo_activations

SIDE = 48
"""Pixels along the side of an image of the scene."""
NUM_RAYS, NUM_SAMPLES = 256, 32
"""Rays of a training step, and samples along each."""


def mined_outputs(field: Field, ray_samples: RaySamples, mining: HardSampleMining) -> dict[FieldHeadNames, Tensor]:
    """The outputs of `field(ray_samples)`, with a backward pass through the hard samples only.

    Args:
        field: any nerfstudio field with exponential density and sigmoid colours.
        ray_samples: of any shape.
        mining: has tau as its state; make it once, as a submodule of the model, so that checkpoints save it.
    """
    samples = ray_samples.flatten()

    def rows(index: Tensor) -> tuple[Tensor, ...]:
        outputs = field(samples[index])
        return outputs[FieldHeadNames.DENSITY], outputs[FieldHeadNames.RGB]

    every = torch.arange(len(samples), device=samples.frustums.origins.device)
    undo = undo_activations("exp", "sigmoid")
    density, rgb = mining(rows, field.parameters(), (every,), before_activation=undo)
    shape = ray_samples.shape
    return {FieldHeadNames.DENSITY: density.view(*shape, 1), FieldHeadNames.RGB: rgb.view(*shape, 3)}


class Photographs(NamedTuple):
    """What is trained on.

    Attributes:
        cameras: N cameras.
        images: [N, H, W, 3] in [0, 1].
    """

    cameras: Cameras
    images: Tensor

    def rays(self, pixels: Tensor) -> tuple[RayBundle, Tensor]:
        """Rays [n] through the centres of pixels [n, 3] (image, row, column), and the pixels' colours [n, 3]."""
        coordinates = pixels[:, 1:] + 0.5
        return self.cameras.generate_rays(pixels[:, :1], coordinates), self.images[tuple(pixels.unbind(1))]


def rendered(field: Field, rays: RayBundle, mining: HardSampleMining | None = None) -> Tensor:
    """Colours [n, 3] of rays [n] before white; with `mining`, only hard samples have a gradient.

    The samples are spread evenly over the part of the rays that the scene is in; nerfacto's proposal networks would
    place them, and nothing else would change.
    """
    edges = torch.linspace(CAMERA_RADIUS - BOUND, CAMERA_RADIUS + BOUND, NUM_SAMPLES + 1)
    jitter = torch.rand(len(rays), 1) - 0.5 if field.training else torch.zeros(len(rays), 1)
    bins = (edges + jitter * (edges[1] - edges[0]))[..., None]
    samples = rays.get_ray_samples(bin_starts=bins[:, :-1], bin_ends=bins[:, 1:])
    outputs = field(samples) if mining is None else mined_outputs(field, samples, mining)
    weights = samples.get_weights(outputs[FieldHeadNames.DENSITY])
    return (weights * outputs[FieldHeadNames.RGB]).sum(1) + 1 - weights.sum(1)


def mined_step(
    field: Field,
    photographs: Photographs,
    memory: BlockMemory,
    mining: HardSampleMining,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """A training step of the hard samples of rays that are drawn where the images are wrong: draw, render, learn.

    Args:
        field: as for `mined_outputs`, in training mode.
        photographs: what is trained on.
        memory: of the photographs' pixels; make it once, as a submodule of the pipeline, so that checkpoints save it.
        mining: as for `mined_outputs`.
        optimizer: of the field's parameters.

    Returns:
        The loss, without bias that of all pixels.
    """
    pixels = memory.draw(NUM_RAYS)
    rays, colors = photographs.rays(pixels)
    errors = (rendered(field, rays, mining) - colors).square().mean(-1)
    # A pixel that is more likely counts less, so that the gradient stays that of all pixels in the mean.
    loss = (memory.weights(pixels).to(errors) * errors).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    # Every ray has as many samples here. Where empty space is skipped, the third argument is how many a ray had.
    memory.learn(pixels, errors.detach(), torch.ones(len(pixels)))
    return loss.detach()


@contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """Bytes of each tensor that is saved for a backward pass within this context."""
    found: list[int] = []

    def count(t: Tensor) -> Tensor:
        found.append(t.nbytes)
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        yield found


def random_samples(num_rays: int, samples_per_ray: int) -> RaySamples:
    """Samples on random rays through the box [-1, 1]^3."""
    shape = (num_rays, samples_per_ray)
    edges = torch.linspace(0.0, 2.0, samples_per_ray + 1)
    frustums = Frustums(
        origins=torch.rand(num_rays, 1, 3).expand(*shape, 3) - 1.0,
        directions=torch.nn.functional.normalize(torch.rand(num_rays, 1, 3), dim=-1).expand(*shape, 3),
        starts=edges[:-1, None].expand(*shape, 1),
        ends=edges[1:, None].expand(*shape, 1),
        pixel_area=torch.ones(*shape, 1),
    )
    return RaySamples(frustums=frustums, camera_indices=torch.zeros(*shape, 1, dtype=torch.long))


def saved_megabytes(rule: str) -> float:
    """Megabytes that are saved for the backward pass through a nerfacto field that is mined with `rule`."""
    torch.manual_seed(0)
    aabb = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    field = NerfactoField(aabb, num_images=1, log2_hashmap_size=14, implementation="torch")
    mining = HardSampleMining(rule)  # type: ignore[arg-type]
    with counted_bytes() as kept:
        outputs = mined_outputs(field, random_samples(64, 32), mining)
        weights = torch.linspace(1.0, 0.0, 32)[:, None] ** 8  # as if the first samples occluded the others
        loss = (weights * outputs[FieldHeadNames.RGB]).square().mean()
        loss.backward()
    return sum(kept) / 2**20


def small_scene(split: str, count: int, side: int = SIDE) -> Photographs:
    """Views of the scene of `make_scene.py`, before white."""
    poses = list(cameras(split, count, seed=0))  # type: ignore[arg-type]
    rgba = torch.from_numpy(np.stack([draw(pose, side) for pose in poses])).float() / 255
    focal = 0.5 * side / math.tan(0.5 * CAMERA_ANGLE_X)
    matrices = torch.from_numpy(np.stack(poses)[:, :3]).float()
    lenses = Cameras(matrices, focal, focal, side / 2, side / 2, side, side)
    return Photographs(lenses, rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])


class Result(NamedTuple):
    """What a training came to.

    Attributes:
        psnr: of views that were not trained on (dB).
        megabytes: saved for the backward pass of a step more.
        seconds: of processor time, of all steps.
    """

    psnr: float
    megabytes: float
    seconds: float


def trained(points: bool, rays: bool, views: tuple[Photographs, Photographs], steps: int, seed: int = 0) -> Result:
    """Train a small nerfacto field.

    Args:
        points: whether only hard samples are backpropagated.
        rays: whether rays are drawn where the images are wrong; otherwise all pixels are as likely.
        views: to train on, and to look at.
        steps: of training.
        seed: of all random numbers.
    """
    torch.manual_seed(seed)
    box = torch.tensor([[-BOUND] * 3, [BOUND] * 3])
    sizes = {"num_levels": 8, "max_res": 128, "log2_hashmap_size": 14, "hidden_dim": 32, "hidden_dim_color": 32}
    field = NerfactoField(box, num_images=1, appearance_embedding_dim=0, implementation="torch", **sizes)
    images = views[0].images
    memory = BlockMemory([tuple(image.shape[:2]) for image in images], uniform_share=0.2 if rays else 1.0)
    mining = HardSampleMining("poisson" if points else "off")
    optimizer, begin = torch.optim.Adam(field.parameters(), lr=0.01, eps=1e-15), time.process_time()
    for _ in range(steps):
        mined_step(field, views[0], memory, mining, optimizer)
    seconds = time.process_time() - begin
    with counted_bytes() as kept:
        mined_step(field, views[0], memory, mining, optimizer)
    field.eval()
    with torch.no_grad():
        errors = []
        for i, image in enumerate(views[1].images):
            pixels = torch.cartesian_prod(torch.tensor([i]), *(torch.arange(n) for n in image.shape[:2]))
            found, colors = views[1].rays(pixels)
            errors.append((rendered(field, found) - colors).square().mean())
    return Result(-10 * math.log10(float(torch.stack(errors).mean())), sum(kept) / 2**20, seconds)


def main(steps: int = 100, side: int = SIDE) -> None:
    """Print what either kind of mining saves or gains.

    Args:
        steps: of each training.
        side: of the images (pixels).
    """
    for rule in ("off", "poisson", "multinomial", "topk"):
        print(f"{rule:12s} {saved_megabytes(rule):7.1f} MB saved for the backward pass")
    views = small_scene("train", 12, side), small_scene("test", 3, side)
    print(f"\n{steps} steps of {NUM_RAYS} rays, {len(views[1].images)} views that were not trained on:")
    for name, points, rays in (
        ("none", False, False),
        ("points", True, False),
        ("rays", False, True),
        ("both", True, True),
    ):
        found = trained(points, rays, views, steps)
        print(f"{name:12s} {found.megabytes:7.1f} MB a step {found.seconds:6.1f} s {found.psnr:7.2f} dB")


if __name__ == "__main__":
    main()
