"""A stopped and resumed training of instant-ngp-hardmine is the training that was not stopped, bit for bit."""

import pytest
import torch
from small_runs import begin, configure
from small_scenes import write_disc

from ns_support.corrections.poses import PoseRefinementConfig

STEPS, STOP = 16, 6
"""The stop lies between two updates of the occupancy grid, which are every fourth step."""


@pytest.fixture(scope="module")
def disc(tmp_path_factory):
    return write_disc(tmp_path_factory.mktemp("scene"), 24, turning=True)


def run(scene, output, steps=STEPS, **fields):
    config = configure("instant-ngp-hardmine", scene, output, steps)
    config.save_only_latest_checkpoint, config.steps_per_save = False, STOP
    config.pipeline.mining_may_rest = False  # it goes by the clock
    config.pipeline.min_num_rays, config.pipeline.target_num_samples = 8, 1 << 13  # the rays of a step change
    model = config.pipeline.model
    model.camera_optimizer, model.exposure, model.ignore_moving = PoseRefinementConfig(mode="SO3xR3"), "on", True
    for name, value in fields.items():
        setattr(config.pipeline if hasattr(config.pipeline, name) else model, name, value)
    return config


def assert_same(whole, resumed):
    assert whole.step == resumed.step == STEPS - 1
    a, b = whole.pipeline.state_dict(), resumed.pipeline.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])), name
    for name, optimizer in whole.optimizers.optimizers.items():
        states = zip(optimizer.state.values(), resumed.optimizers.optimizers[name].state.values(), strict=True)
        for own, other in states:
            for key, value in own.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])), (name, key)


@pytest.mark.parametrize(
    "fields",
    [{}, {"mining_rule": "off"}, {"mining_rule": "multinomial"}, {"ray_rule": "blocks"}, {"merge_by": "hardness"}],
)
def test_a_resumed_training_continues_as_if_it_had_never_stopped(fields, disc, tmp_path):
    whole = begin(run(disc, tmp_path / "a", **fields))
    assert whole.pipeline.num_rays != 8
    again = run(disc, tmp_path / "b", STEPS - STOP - 1, **fields)
    again.load_dir, again.load_step = whole.checkpoint_dir, STOP
    assert_same(whole, begin(again))


def test_an_evaluation_in_between_changes_nothing(disc, tmp_path):
    def look(trainer):
        torch.rand(5)
        trainer.pipeline.get_average_eval_image_metrics()
        trainer.pipeline.train()

    assert_same(begin(run(disc, tmp_path / "a")), begin(run(disc, tmp_path / "b"), at=STOP, act=look))


def test_another_seed_is_another_training(disc, tmp_path):
    other = run(disc, tmp_path / "b")
    other.machine.seed += 1
    first, second = begin(run(disc, tmp_path / "a")), begin(other)
    assert not torch.equal(first.pipeline.model.grid.thickness, second.pipeline.model.grid.thickness)
