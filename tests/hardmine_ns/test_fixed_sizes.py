"""Steps of which the host learns no size, on a CPU: the same losses and gradients as ordinary ones.

A stand-in in PyTorch takes the place of the kernels, which `rendering/test_gpu_search.py` compares with it in turn.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.engine.optimizers import Optimizers

from hardmine_ns import fixed_sizes
from hardmine_ns.fixed_sizes import FixedSizes
from hardmine_ns.marching import compositing, march_rays
from hardmine_ns.marching.occupancy import locate
from hardmine_ns.method import instant_ngp_hardmine_bounded
from hardmine_ns.pipeline import next_num_rays
from hardmine_ns.rendering.visibility import Rays, search

STEPS = 6


def pipeline_of(folder, **model):
    config = copy.deepcopy(instant_ngp_hardmine_bounded.config)
    config.pipeline.datamanager.data = folder
    config.pipeline.target_num_samples, config.pipeline.ray_rule = 2048, "uniform"
    config.pipeline.min_num_rays = 16
    settings = {"log2_hashmap_size": 10, "max_res": 64, "grid_resolution": 16, "grid_cells_per_update": 2048}
    settings |= {"hidden_dim": 16, "num_levels": 6, "render_step_size": 0.1, "merge_most": 1}
    for name, value in (settings | {"grid_blocks_first": False} | model).items():
        setattr(config.pipeline.model, name, value)
    torch.manual_seed(0)
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")
    pipeline.train()
    return pipeline


def visible_of_rays(field, lattices, grid, limits, capacity, report, *, contracts, observed):
    """As `rendering.gpu.launch.visible_of_rays`, from the ordinary pass and with sizes."""
    origins, directions, starts, fars, step_size, _ = lattices
    samples = march_rays(origins, directions, starts, fars, grid, step_size=step_size)
    unit = lambda x: ((x - grid.center) / grid.half_extent * 0.5 + 0.5).clamp(0, 1)  # noqa: E731
    alpha = min(limits.alpha_threshold, grid.mean_thickness)
    found = search(
        field, samples, Rays(origins, directions), unit, limits.early_stop, alpha, keep_features=True
    )  # fmt: skip
    number = len(found.samples)
    report.copy_(torch.tensor([float(number), float(len(found.searched[0]))]))
    if observed is not None:
        cells, inside = locate(found.searched[0], grid)
        observed.scatter_reduce_(0, cells[inside], (found.searched[1] * step_size)[inside], "amax")
    ends = found.samples.offsets
    kept = (ends[1:] <= capacity).float()
    have = int(ends[ends <= capacity].max())

    def padded(rows):
        return torch.cat([rows[:have], rows.new_zeros(capacity - have, *rows.shape[1:])])

    padded_samples = type(samples)(
        *map(padded, (found.samples.t_starts, found.samples.t_ends, found.samples.ray_indices)),
        ends.clamp(max=capacity),
        padded(found.samples.midpoints),
    )
    rows = map(padded, (found.unit_positions, found.geometry, found.features))
    return SimpleNamespace(
        samples=padded_samples,
        **dict(zip(("unit_positions", "geometry", "features"), rows, strict=True)),
        kept=kept,
        looked_up=samples.offsets.diff(),
    )


@pytest.fixture
def without_sizes(monkeypatch):
    """A function that makes steps go without sizes from now on, or no longer."""
    serve = FixedSizes.serve

    def make(wanted=True):
        limits = lambda early_stop, alpha: SimpleNamespace(early_stop=early_stop, alpha_threshold=alpha)  # noqa: E731
        stand_in = SimpleNamespace(Limits=limits, visible_of_rays=visible_of_rays)
        monkeypatch.setattr(fixed_sizes, "_kernels", lambda: stand_in)
        monkeypatch.setattr(FixedSizes, "serve", lambda *arguments: serve(*arguments) or wanted)
        # The kernels of a GPU do so of their own accord.
        backward = compositing.cpu.composite_backward

        def and_zeros(colors, middles, offsets, *rest):
            gradients = backward(colors, middles, offsets, *rest)
            for gradient in gradients:
                gradient[int(offsets[-1]) :] = 0
            return gradients

        monkeypatch.setattr(compositing.cpu, "composite_backward", and_zeros)

    return make


def step(pipeline, at):
    """Loss and gradients."""
    pipeline.model.zero_grad()
    _, losses, metrics = pipeline.get_train_loss_dict(at)
    loss = sum(losses.values())
    loss.backward()
    grads = {name: p.grad.to_dense() for name, p in pipeline.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads, metrics


def train(pipeline, steps, at=0):
    optimizers = Optimizers(copy.deepcopy(instant_ngp_hardmine_bounded.config.optimizers), pipeline.get_param_groups())
    losses = []
    for number in range(at, at + steps):
        pipeline.model.update_grid(number)
        loss, _, metrics = step(pipeline, number)
        optimizers.optimizer_step_all()
        losses.append(loss)
    return losses, metrics


def test_loss_and_gradients_are_those_of_an_ordinary_step(ball, without_sizes):
    pipeline = pipeline_of(ball, mining_rule="off")
    train(pipeline, STEPS)
    loss, wanted, _ = step(pipeline, STEPS)
    rays, counts = len(pipeline.model.ray_findings.pixels), pipeline.model.sample_counts
    pipeline.num_rays = rays
    without_sizes()
    found_loss, found, _ = step(pipeline, STEPS)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)
    # What the host learns later.
    assert pipeline.num_rays == rays
    pipeline.config.target_num_samples //= 2
    pipeline._settle()
    assert pipeline.num_rays == next_num_rays(rays, counts.visible, counts.searched, pipeline.config) != rays
    assert pipeline.model.sample_counts.visible == counts.visible == pipeline.model.mining.statistics.rows


def test_rays_without_room_do_not_count(ball, without_sizes, monkeypatch):
    pipeline = pipeline_of(ball, mining_rule="off")
    train(pipeline, STEPS)
    _, _, _ = step(pipeline, STEPS)
    visible = pipeline.model.sample_counts.visible
    rays = len(pipeline.model.ray_findings.pixels)
    pipeline.num_rays = rays
    without_sizes()
    monkeypatch.setattr(FixedSizes, "_capacity", lambda *_: visible // 2)
    loss, found, _ = step(pipeline, STEPS)
    kept = pipeline.model.fixed.kept
    count = int(kept.sum())
    assert 0.2 * rays < count < 0.8 * rays
    # The ordinary step on those rays alone; they are the first.
    without_sizes(False)
    pipeline._settle()
    pipeline.num_rays = rays
    weights = {"ray_weights": torch.where(kept > 0, rays / count, 0.0)}
    data = pipeline.datamanager
    next_train = data.next_train
    monkeypatch.setattr(data, "next_train", lambda at: (lambda b: (b[0], b[1] | weights))(next_train(at)))
    wanted_loss, wanted, _ = step(pipeline, STEPS)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", ["poisson", "systematic", "topk", "multinomial"])
def test_training_goes_on(rule, ball, without_sizes):
    pipeline = pipeline_of(ball, mining_rule=rule, alpha_thre=0.01)
    without_sizes()
    losses, metrics = train(pipeline, 60)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    mined = pipeline.model.mining.statistics
    assert 0.05 <= float(metrics["mining_fraction"]) <= 0.55
    assert mined.finite
    assert float(pipeline.model.mining.tau) > 1
    assert pipeline.model.fixed.kept.all()
    assert 1024 < pipeline.model.sample_counts.visible < 4096


def test_a_checkpoint_has_the_rays_of_the_next_step(ball, without_sizes):
    pipeline = pipeline_of(ball)
    without_sizes()
    train(pipeline, 3)
    assert pipeline.model.fixed.undecided
    before = pipeline.num_rays
    state = pipeline.state_dict()
    assert not pipeline.model.fixed.undecided
    assert int(state["_num_rays"]) == pipeline.num_rays != before


def test_who_looks_is_told_the_samples_that_were_drawn(ball, without_sizes, monkeypatch):
    pipeline = pipeline_of(ball)
    without_sizes()
    train(pipeline, 2)
    told = []
    monkeypatch.setattr(pipeline.model.run, "watcher", lambda unit: lambda rows: told.append((unit, rows)))
    train(pipeline, 1, at=2)
    ((unit, rows),) = told
    pipeline._settle()
    assert len(unit) == pipeline.model.sample_counts.visible
    assert 0 < len(rows) < len(unit)
    assert int(rows.max()) < len(unit)
    assert len(rows.unique()) == len(rows)


def test_an_image_in_between_changes_nothing(ball, without_sizes):
    pipeline = pipeline_of(ball)
    without_sizes()
    train(pipeline, 3)
    pipeline.eval()
    pipeline.get_eval_loss_dict(3)  # of another number of rays
    pipeline.train()
    train(pipeline, 1, at=3)


def test_on_a_cpu_steps_are_taken_as_ever(ball):
    pipeline = pipeline_of(ball)
    train(pipeline, 2)
    assert pipeline.model.fixed.kept is None
    assert not pipeline.model.fixed.undecided
