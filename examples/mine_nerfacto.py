"""Hard-sample mining with an unmodified field of nerfstudio: that of nerfacto.

`mined_outputs` is the complete integration. Run as a script, this file prints how many bytes of activations are saved
for the backward pass on random rays, for each mining rule: `python examples/mine_nerfacto.py`.
"""

from __future__ import annotations

import torch
from nerfstudio.cameras.rays import Frustums, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from nerfstudio.fields.nerfacto_field import NerfactoField
from torch import Tensor

from hardmine_ns.mining import HardSampleMining, undo_activations


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
    kept = 0

    def count(t: Tensor) -> Tensor:
        nonlocal kept
        kept += t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        outputs = mined_outputs(field, random_samples(64, 32), mining)
        weights = torch.linspace(1.0, 0.0, 32)[:, None] ** 8  # as if the first samples occluded the others
        loss = (weights * outputs[FieldHeadNames.RGB]).square().mean()
        loss.backward()
    return kept / 2**20


if __name__ == "__main__":
    for mining_rule in ("off", "poisson", "multinomial", "topk"):
        print(f"{mining_rule:12s} {saved_megabytes(mining_rule):7.1f} MB saved for the backward pass")
