"""The law of the mined gradient on a batch of a scene in training: its mean, and its variance by formula.

With g_i the gradient of the loss with respect to row i's outputs and J_i their derivative with respect to all
parameters, rule `poisson` estimates sum J_i^T g_i with the variance

    E |G - E G|^2 = sum over i of (1 / pi_i - 1) |J_i^T g_i|^2.
"""

import copy
from statistics import mean

import pytest
import torch
from torch import Tensor

from hardmine_ns.marching import march_rays
from hardmine_ns.method import instant_ngp_hardmine_bounded
from hardmine_ns.mining import BlockMemory, HardSampleMining, poisson_probabilities, union_probabilities
from hardmine_ns.mining.hardness import hardness, of_heads
from hardmine_ns.model import HardMineModel, weighted
from hardmine_ns.pipeline import AdaptiveRaysPipeline
from hardmine_ns.rendering.field import spherical_harmonics
from hardmine_ns.rendering.visibility import Rays, Visible, render_visible, search

FRACTION = 0.3
DRAWS, SETS = 200, 4
"""Of gradients in a set, and sets of them over which a distance from the truth is averaged."""


class Listening(HardSampleMining):
    """Keeps the gradients that it chose rows by."""

    def choose(self, gradients):
        self.gradients = [g.clone() for g in gradients]
        return super().choose(gradients)


class Batch:
    """Rays through a scene that has been trained for some steps, and the gradients of their loss."""

    def __init__(self, folder):
        config = copy.deepcopy(instant_ngp_hardmine_bounded.config)
        config.pipeline.datamanager.data = folder
        config.pipeline.target_num_samples, config.pipeline.ray_rule = 1024, "blocks"
        settings = {"log2_hashmap_size": 10, "max_res": 64, "grid_resolution": 32, "grid_cells_per_update": 8192}
        settings |= {"hidden_dim": 16, "num_levels": 6, "render_step_size": 0.06, "background_color": "white"}
        for name, value in settings.items():
            setattr(config.pipeline.model, name, value)
        torch.manual_seed(0)
        self.pipeline: AdaptiveRaysPipeline = config.pipeline.setup(device="cpu", test_mode="val")
        self.pipeline.train()
        optimizer = torch.optim.Adam([p for p in self.model.field.parameters() if p is not self.table], 1e-2)
        of_table = torch.optim.SparseAdam([self.table], 1e-2)
        for step in range(40):
            self.model.update_grid(step)
            _, losses, _ = self.pipeline.get_train_loss_dict(step)
            sum(losses.values()).backward()
            for each in (optimizer, of_table):
                each.step()
                each.zero_grad()

    @property
    def model(self) -> HardMineModel:
        return self.pipeline.model

    @property
    def table(self) -> Tensor:
        return self.model.field.encoding.table

    def see(self, pixels: Tensor) -> tuple[Rays, Visible, Tensor]:
        """Rays of pixels [n, 3], what is visible on them without any jitter, and their colours [n, 3]."""
        data = self.pipeline.datamanager
        bundle = data.train_ray_generator(pixels)
        near, far = self.model.bounds(bundle)
        ends = (near, far, self.model.grid)
        samples = march_rays(bundle.origins, bundle.directions, *ends, step_size=self.model.step_size)
        rays = Rays(bundle.origins, bundle.directions)
        images = torch.stack([data.train_dataset[i]["image"] for i in range(len(data.train_dataset))])
        found = search(self.model.field, samples, rays, self.model.to_unit, keep_features=True)
        return rays, found, self.model.renderer_rgb.blend_background(images[tuple(pixels.T)])

    def gradient(self, seen: tuple[Rays, Visible, Tensor], mining: HardSampleMining, weights: Tensor | None) -> Tensor:
        """Of the mean loss, all parameters in one vector."""
        rays, found, colors = seen
        self.pipeline.zero_grad()
        rgb = self.model._outputs(render_visible(self.model.field, found, rays, mining))["rgb"]
        weighted((rgb - colors).square(), weights).mean().backward()
        return torch.cat([p.grad.to_dense().flatten() for p in self.model.field.parameters()]).double()


@pytest.fixture(scope="module")
def batch(lasting_ball):
    return Batch(lasting_ball)


def drawn_gradients(batch: Batch, rule, heads="together", draws=DRAWS) -> tuple[Tensor, Tensor, Listening, tuple]:
    torch.manual_seed(1)
    pixels = batch.pipeline.datamanager.memory.draw(40)
    seen = batch.see(pixels)
    mining = Listening(rule, FRACTION, FRACTION, heads=heads)
    whole = batch.gradient(seen, HardSampleMining("off"), None)
    return torch.stack([batch.gradient(seen, mining, None) for _ in range(draws)]), whole, mining, seen


def squared_norms_by_row(batch: Batch, seen: tuple[Rays, Visible, Tensor], gradients: list[Tensor]) -> Tensor:
    """|J_i^T g_i|^2, [B]: a backward pass for each row."""
    rays, found, _ = seen
    field, norms = batch.model.field, []
    harmonics = spherical_harmonics(rays.directions)[found.samples.ray_indices]
    for i in range(len(found.samples)):
        own = slice(i, i + 1)
        geometry = field.geometry(found.unit_positions[own])
        outputs = [geometry[:, 0], field.color(geometry, harmonics[own])]
        of_row = torch.autograd.grad(outputs, list(field.parameters()), [g[own] for g in gradients])
        norms.append(
            sum(
                g.coalesce().values().double().square().sum() if g.is_sparse else g.double().square().sum()
                for g in of_row
            )
        )
    return torch.stack(norms)


@pytest.mark.parametrize("heads", ["together", "separate"])
def test_the_variance_is_the_formulas(batch, heads):
    estimates, whole, mining, seen = drawn_gradients(batch, "poisson", heads)
    count = len(seen[1].samples)
    assert count > 150
    if heads == "together":
        probability = poisson_probabilities(hardness(mining.gradients).values, round(FRACTION * count)).double()
    else:
        probability = union_probabilities(of_heads(mining.gradients), round(FRACTION * count)).double()
    assert float(probability.sum()) == pytest.approx(FRACTION * count, rel=0.01)
    drawn = probability > 0
    norms = squared_norms_by_row(batch, seen, mining.gradients)
    predicted = float(((1 / probability[drawn] - 1) * norms[drawn]).sum())
    squares = (estimates - whole).square().sum(1)
    assert predicted > 0
    assert float(squares.mean()) == pytest.approx(predicted, abs=4 * float(squares.std()) / DRAWS**0.5)
    assert float(squares.std()) / DRAWS**0.5 < 0.1 * predicted  # or the line above would say nothing


def distance_in_errors(estimates: Tensor, whole: Tensor) -> float:
    """Squared distance of the mean of the estimates from the truth, in units of its expectation without bias."""
    expected = (estimates - estimates.mean(0)).square().sum(1).mean() / (len(estimates) - 1)
    return float((estimates.mean(0) - whole).square().sum() / expected)


@pytest.mark.parametrize("rule", ["poisson", "systematic"])
@pytest.mark.parametrize("heads", ["together", "separate"])
def test_the_mean_is_the_whole_gradient(batch, rule, heads):
    estimates, whole, *_ = drawn_gradients(batch, rule, heads, SETS * DRAWS)
    print(f"variance by {rule}, heads {heads}: {float((estimates - whole).square().sum(1).mean()):.3g}")
    # One set is not enough: few directions decide, and without any bias it may be beyond 2.
    assert mean(distance_in_errors(one, whole) for one in estimates.split(DRAWS)) < 2


@pytest.mark.parametrize("rule", ["multinomial", "topk"])
def test_the_biased_rules_are_told_apart(batch, rule):
    estimates, whole, *_ = drawn_gradients(batch, rule)
    if rule == "topk":
        torch.testing.assert_close(estimates[1], estimates[0])
        assert float((estimates[0] - whole).norm() / whole.norm()) > 0.01
    else:
        assert distance_in_errors(estimates, whole) > 10


def test_rays_by_blocks_have_the_gradient_of_all_pixels(batch):
    memory: BlockMemory = batch.pipeline.datamanager.memory
    assert (memory.errors >= 0).float().mean() > 0.9  # the training has seen the images
    memory._chance = None
    everything = torch.cartesian_prod(torch.arange(6), torch.arange(24), torch.arange(24))
    assert float(memory.weights(everything).max() / memory.weights(everything).min()) > 3
    torch.manual_seed(2)
    off = HardSampleMining("off")
    whole = batch.gradient(batch.see(everything), off, None)
    estimates = []
    for _ in range(DRAWS):
        pixels = memory.draw(60)
        estimates.append(batch.gradient(batch.see(pixels), off, memory.weights(pixels)))
    assert distance_in_errors(torch.stack(estimates), whole) < 2
    unweighted = [batch.gradient(batch.see(memory.draw(60)), off, None) for _ in range(DRAWS)]
    assert distance_in_errors(torch.stack(unweighted), whole) > 5
