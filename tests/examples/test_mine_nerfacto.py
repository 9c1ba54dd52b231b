import torch
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.nerfacto_field import NerfactoField

from hardmine_ns.mining import HardSampleMining


def test_example_mines_nerfactos_field(example):
    example = example("mine_nerfacto")
    torch.manual_seed(0)
    box = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    field = NerfactoField(box, num_images=1, num_levels=2, max_res=32, log2_hashmap_size=8, implementation="torch")
    samples = example.random_samples(4, 10)

    def gradients(outputs) -> list[torch.Tensor]:
        field.zero_grad()
        weights = torch.linspace(1, 0, 10)[:, None] ** 4
        (weights * (outputs[FieldHeadNames.RGB] + outputs[FieldHeadNames.DENSITY])).sum().backward()
        return [p.grad.clone() for p in field.parameters() if p.grad is not None]

    plain = gradients(field(samples))
    every = gradients(example.mined_outputs(field, samples, HardSampleMining("topk", 1.0, 1.0)))
    for a, b in zip(plain, every, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * b.abs().max())
    mining = HardSampleMining("topk", 0.1, 0.1)
    gradients(example.mined_outputs(field, samples, mining))
    assert mining.statistics.selected == 4
