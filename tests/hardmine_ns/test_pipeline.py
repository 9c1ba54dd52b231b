"""Several processes, joined by gloo, train one field."""

import copy

import pytest
import torch
from nerfstudio.engine.trainer import writer  # imported first, nerfstudio.utils.writer fails: it needs itself

from hardmine_ns.method import instant_ngp_hardmine_bounded
from hardmine_ns.pipeline import AdaptiveRaysPipelineConfig, next_num_rays

STEPS = 20


def small_config(folder, **model):
    config = copy.deepcopy(instant_ngp_hardmine_bounded.config)
    config.pipeline.datamanager.data = folder
    config.pipeline.target_num_samples = 2048
    settings = {"log2_hashmap_size": 12, "max_res": 128, "grid_resolution": 32, "grid_cells_per_update": 4096}
    settings |= {"hidden_dim": 32, "render_step_size": 0.03} | model
    for name, value in settings.items():
        setattr(config.pipeline.model, name, value)
    return config


def train(folder, output, rank, size, **model):
    config = small_config(folder, **model)
    config.output_dir, config.experiment_name, config.timestamp = output, "test", "run"
    config.vis, config.max_num_iterations = "tensorboard", STEPS
    config.steps_per_eval_batch = config.steps_per_eval_image = 0
    config.viewer.quit_on_train_completion = True
    config.logging.local_writer.enable = False
    writer.EVENT_WRITERS.clear()  # of an earlier run, whose thread a forked process does not have and would wait for
    torch.manual_seed(rank)  # as `ns-train` has it: a seed of its own for each process
    trainer = config.setup(local_rank=rank, world_size=size)
    trainer.setup()
    losses = []
    iterate = trainer.train_iteration

    def note(step):
        result = iterate(step)
        losses.append(float(result[0].detach()))
        return result

    trainer.train_iteration = note
    trainer.train()
    pipeline = trainer.pipeline
    return pipeline.model.state_dict(), losses, pipeline.num_rays, pipeline.model.sample_counts.visible


@pytest.mark.parametrize("rule", ["poisson", "off", pytest.param("topk", marks=pytest.mark.slow)])
def test_processes_hold_one_field_one_grid_and_one_tau(ball, tmp_path, rule, run_processes):
    """Of rays of their own. The loss falls, and each loss is its process's share of the mean."""

    def work(rank):
        return train(ball, tmp_path / str(rank), rank, 2, mining_rule=rule)

    (first, losses, rays, visible), (second, others, other_rays, other_visible) = run_processes(work)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert rays == other_rays
    assert visible != other_visible  # other rays
    assert (first["mining.tau"] > 1) == (rule != "off")
    total = [a + b for a, b in zip(losses, others, strict=True)]
    assert losses[0] == others[0]  # logged for all
    assert sum(total[-5:]) < 0.7 * sum(total[1:6])


def test_mining_follows_the_viewer_of_process_0(ball, run_processes):
    """The others have none; with another rule or other fractions they would add up other things, and all would wait."""

    def work(rank):
        pipeline = small_config(ball).pipeline.setup(device="cpu", world_size=2, local_rank=rank).train()
        mining, run = pipeline.model.mining, pipeline.model.run
        found = []
        for step in range(2):
            if rank == 0 and step == 1:
                run.rule.default_value, run.least.default_value, run.greatest.default_value = "topk", 0.3, 0.7
                run.rule.cb_hook(run.rule)
            pipeline.get_train_loss_dict(step)
            found.append((mining.rule, mining.min_fraction, mining.max_fraction))
        return found

    for found in run_processes(work):
        assert found == [("poisson", 0.05, 0.5), ("topk", 0.3, 0.7)]


def test_mining_rests_where_it_makes_no_step_cheaper(ball, monkeypatch, capsys):
    pipeline = small_config(ball).pipeline.setup(device="cpu").train()
    mining = pipeline.model.mining
    pipeline.get_train_loss_dict(0)
    assert not mining.rests
    monkeypatch.setattr(pipeline._costs, "verdict", lambda: 1.3)
    _, losses, _ = pipeline.get_train_loss_dict(1)
    assert mining.rests
    losses["rgb_loss"].backward()
    assert mining.statistics.selected == mining.statistics.rows > 0
    assert "no step cheaper here (1.30 times" in " ".join(capsys.readouterr().out.split())
    pipeline.config.mining_may_rest = False
    pipeline.get_train_loss_dict(2)
    assert not mining.rests


def test_processes_rest_together(ball, run_processes):
    def work(rank):
        pipeline = small_config(ball).pipeline.setup(device="cpu", world_size=2, local_rank=rank).train()
        pipeline._costs.verdict = lambda: 1.3 if rank == 0 else 0.5
        pipeline.get_train_loss_dict(1)
        return pipeline.model.mining.rests

    assert run_processes(work) == [True, True]


def test_rays_per_batch_follow_the_samples_within_their_limits():
    config = AdaptiveRaysPipelineConfig(
        target_num_samples=1000, max_searched_ratio=4.0, min_num_rays=64, max_num_rays=512
    )
    assert next_num_rays(100, 800, 800, config) == 125
    assert next_num_rays(100, 100, 100, config) == 150  # grows by half at most
    assert next_num_rays(400, 0, 0, config) == 512
    assert next_num_rays(100, 10**7, 10**7, config) == 64
    assert next_num_rays(400, 1000, 8000, config) == 200  # the search is what costs
    assert next_num_rays(101, 1000, 1000, config) == 101
