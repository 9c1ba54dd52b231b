import torch
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.nerfacto_field import NerfactoField

from hardmine_ns.mining import BlockMemory, HardSampleMining


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


def test_a_step_draws_weighs_and_learns(example):
    """The loss is that of all pixels in the mean, with rays of which most are where the error is."""
    example = example("mine_nerfacto")
    torch.manual_seed(0)
    views = example.small_scene("train", 2, side=16)
    box = torch.tensor([[-1.25] * 3, [1.25] * 3])
    sizes = {"num_levels": 2, "max_res": 32, "log2_hashmap_size": 8}
    field = NerfactoField(box, num_images=1, appearance_embedding_dim=0, implementation="torch", **sizes)
    memory, mining = BlockMemory([(16, 16)] * 2), HardSampleMining("off")
    still = torch.optim.SGD(field.parameters(), lr=0.0)
    everywhere = torch.cartesian_prod(torch.arange(2), torch.arange(16), torch.arange(16))
    rays, colors = views.rays(everywhere)
    assert torch.equal(colors.reshape(2, 16, 16, 3), views.images)
    with torch.no_grad():
        errors = (example.rendered(field, rays) - colors).square().mean(-1)
    memory.learn(everywhere, errors**8, torch.ones(len(errors)))  # differ enough to show in a few steps
    found = torch.stack([example.mined_step(field, views, memory, mining, still) for _ in range(25)])
    deviation = float(found.std()) / 5
    assert abs(float(found.mean() - errors.mean())) < 4 * deviation < 0.2 * float(errors.mean())
    weights = memory.weights(everywhere)
    assert float(weights.max()) > 2 * float(weights.min())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in field.mlp_base.parameters())


def test_the_script_trains_in_all_four_ways(example, capsys):
    example("mine_nerfacto").main(steps=2, side=12)
    lines = capsys.readouterr().out.splitlines()
    saved = {line.split()[0]: float(line.split()[1]) for line in lines if "MB" in line}
    assert list(saved) == ["off", "poisson", "multinomial", "topk", "none", "points", "rays", "both"]
    assert saved["points"] < saved["none"]
    assert saved["both"] < saved["rays"]
