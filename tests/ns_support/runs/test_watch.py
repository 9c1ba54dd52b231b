"""A training whose numbers are not finite any more stops, and the checkpoint from before stays the newest."""

import pytest
import torch
from small_runs import begin, both, configure, said, steps_in
from small_scenes import write_disc
from torch import nn

from ns_support.errors import UserError
from ns_support.runs.saved_runs import checkpoints_in
from ns_support.runs.watch import Watch


def test_the_first_loss_that_is_not_finite_stops(tmp_path):
    watch = Watch(tmp_path)
    watch.follow(torch.tensor(0.5), 6)
    with pytest.raises(
        UserError, match=r"stopped at step 7: the loss is not a finite .* Nothing had been saved before"
    ):
        watch.follow(torch.tensor(torch.nan), 7)


def test_a_gradient_scaler_leaves_out_some(tmp_path):
    watch = Watch(tmp_path, scales=True)
    for step in range(300):  # never a hundred in a row
        watch.follow(torch.tensor(torch.inf if step % 100 else 0.5), step)
    watch.follow(0.5, 300)
    for step in range(301, 400):
        watch.follow(torch.inf, step)
    with pytest.raises(UserError, match="stopped at step 400"):
        watch.follow(torch.inf, 400)


def parameter(*values):
    return [("weights", nn.Parameter(torch.tensor(values)))]


def test_parameters_that_are_not_finite_are_not_saved(tmp_path, capsys):
    watch = Watch(tmp_path)
    watch.check_parameters(parameter(*[0.0] * 200))
    watch.check_parameters(parameter(torch.nan, *[0.0] * 199))
    assert "1 of the 200 numbers in weights are not finite" in said(capsys)
    with pytest.raises(UserError, match="3 of the 200 numbers in weights are not finite any more"):
        watch.check_parameters(parameter(*[torch.inf] * 3, *[0.0] * 197))


EMPTY = "no ray met anything, and the pictures are empty"


def test_pictures_that_stay_empty_are_said(tmp_path, capsys):
    for late in (19, 20):
        watch, weights = Watch(tmp_path), nn.Parameter(torch.zeros(3))
        weights.grad = torch.zeros(3)
        table = nn.Parameter(torch.zeros(2, 2))
        for step in range(30):
            rows = torch.full((1, 2), float(step == late))
            table.grad = torch.sparse_coo_tensor(torch.zeros(1, 1).long(), rows, (2, 2))
            watch.look([weights, table])
        assert (EMPTY in said(capsys)) == (late == 20)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_disc(tmp_path_factory.mktemp("scene") / "disc")


@both
def test_a_run_keeps_the_checkpoint_from_before(method, scene, tmp_path):
    config = configure(method, scene, tmp_path, 8, steps_per_save=2, save_only_latest_checkpoint=True, timestamp="run")

    def break_down(trainer):
        for each in trainer.pipeline.model.parameters():
            each.data.fill_(torch.nan)

    with pytest.raises(UserError, match=r"Training stopped at step \d+: .*step-000000002\.ckpt is from before"):
        begin(config, at=3, act=break_down)
    assert [c.step for c in checkpoints_in(config.get_checkpoint_dir())] == [2]


def test_a_sound_run_is_saved_to_its_end(scene, tmp_path):
    trainer = begin(configure("raygauss", scene, tmp_path, 4, steps_per_save=2, timestamp="run"))
    assert steps_in(trainer) == [3]


@both
@pytest.mark.parametrize("near", [None, 1e2])
def test_a_run_whose_cameras_see_nothing(method, near, scene, tmp_path, capsys):
    config = configure(method, scene, tmp_path, 20)
    if near is not None:
        config.pipeline.model.near_plane = near
        config.pipeline.model.far_plane = 1e3
    begin(config)
    assert (EMPTY in said(capsys)) == (near is not None)
