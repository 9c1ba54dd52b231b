"""Several processes, joined by gloo, against one process that renders the same images."""

import pytest
import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils import writer
from small_runs import configure_growing

from ns_support.concurrency.processes import Processes
from ns_support.corrections.poses import PoseRefinementConfig
from ns_support.errors import UserError
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.initialization import random_points
from raygauss_ns.pipeline import RayGaussPipeline

STEPS = 24
FIELDS = {
    "densify_threshold": 1e-4,
    "densify_until": 20_000,
    "max_gaussians": 900,
    "background_color": "random",
    "training_window": 15,
    "window_rule": "blocks",
    "accumulate_images": 1,
    "num_downscales": 1,
    "camera_optimizer": PoseRefinementConfig(mode="SO3xR3"),
    "exposure": "on",
    "ignore_moving": True,
}


def configure(scene, folder, images=1, steps=STEPS, **fields):
    config = configure_growing(scene, folder, steps, **(FIELDS | fields))
    config.pipeline.datamanager.dataparser.alpha_color = None
    config.pipeline.images_per_batch = images
    config.save_only_latest_checkpoint, config.steps_per_save = False, 10
    return config


def train(config, rank=0, size=1, before=lambda trainer: None):
    writer.EVENT_WRITERS.clear()  # of an earlier run, whose thread a forked process does not have and would wait for
    torch.manual_seed(rank)  # as `ns-train` has it: a seed of its own for each process
    trainer = config.setup(local_rank=rank, world_size=size)
    trainer.setup(test_mode="val")
    before(trainer)
    trainer.train()
    return trainer


def state(trainer):
    """All that a training holds, as tensors by name."""
    found = dict(trainer.pipeline.model.state_dict())
    for name, optimizer in trainer.optimizers.optimizers.items():
        found[f"rate of {name}"] = torch.tensor(optimizer.param_groups[0]["lr"])
        for key, value in optimizer.state[optimizer.param_groups[0]["params"][0]].items():
            found[f"{key} of {name}"] = value
    return found


def assert_equal(state, expected):
    """Bit for bit: each image's gradient is a sum of its own, whichever process it is rendered in."""
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.fixture(scope="module")
def alone(scene, tmp_path_factory):
    """One process with two images in a step: its state at the end, and the folder of its checkpoints."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: the order of sums depends on it
    trainer = train(configure(scene, tmp_path_factory.mktemp("alone"), images=2))
    torch.set_num_threads(threads)
    assert len(trainer.pipeline.model.cloud) > 400
    return state(trainer), trainer.checkpoint_dir


def test_two_processes_are_one_with_the_images_of_both(scene, alone, tmp_path, run_processes):
    """Over rounds of density control, random windows and backgrounds; one of them writes."""

    def work(rank):
        return state(train(configure(scene, tmp_path / str(rank)), rank, 2))

    for found in run_processes(work):
        assert_equal(found, alone[0])
    names = sorted(path.name for path in (tmp_path / "0").rglob("*.ckpt"))
    assert names == ["step-000000010.ckpt", "step-000000020.ckpt", "step-000000023.ckpt"]
    assert [path.name for path in (tmp_path / "1").rglob("*") if path.is_file()] == ["dataparser_transforms.json"]


def test_two_processes_resume_what_one_began(scene, alone, tmp_path, run_processes):
    def work(rank):
        config = configure(scene, tmp_path / str(rank), steps=STEPS - 11)
        config.load_dir, config.load_step = alone[1], 10
        return state(train(config, rank, 2))

    for found in run_processes(work):
        assert_equal(found, alone[0])


def test_gradients_accumulate_over_steps_and_processes(scene, tmp_path, run_processes):
    """Four images in two steps, then one optimiser step: equal but for the order of the sum."""
    fields = {
        "accumulate_from": 0,
        "accumulate_images": 60_000,
        "densify_until": 0,
    }  # 4 images in a training of 2 steps

    def work(rank):
        return state(train(configure(scene, tmp_path / str(rank), steps=2, **fields), rank, 2))

    expected = state(train(configure(scene, tmp_path / "alone", images=2, steps=2, **fields)))
    assert expected["step of means"] == 1
    for found in run_processes(work):
        for name in ("means", "scales", "densities", "sh_base"):
            moment, wanted = found[f"exp_avg of {name}"], expected[f"exp_avg of {name}"]
            torch.testing.assert_close(moment, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_processes_that_start_from_other_numbers_of_points_start_alike(run_processes):
    def work(rank):
        torch.manual_seed(rank)
        points = random_points(30 + 5 * rank, torch.tensor([[-1.0] * 3, [1.0] * 3]))
        cloud = GaussianCloud(points, unit=1.0 + rank, density=1.0)
        Processes.current().broadcast_module(cloud)
        return cloud.unit, {name: tensor.detach() for name, tensor in cloud.state_dict().items()}

    (unit, first), (other_unit, second) = run_processes(work)
    assert unit == other_unit == 1.0
    assert len(first["params.means"]) == 30
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_processes_stop_together_and_log_for_all(scene, tmp_path, run_processes):
    """Process 0 wants to stop during step 3: as its viewer's thread might, at any time."""

    def work(rank):
        logged = []

        def before(trainer):
            def stop(step):
                trainer.stop_training = step == 3 and rank == 0

            trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], stop))
            iterate = trainer.train_iteration
            trainer.train_iteration = lambda step: logged.append(iterate(step)) or logged[-1]

        config = configure(scene, tmp_path / str(rank))
        config.logging.steps_per_log = 2
        last = train(config, rank, 2, before).step
        return last, [(float(loss), float(metrics["psnr"])) for loss, _, metrics in logged]

    (last, here), (other, there) = run_processes(work)
    assert last == other == 4  # at the top of which the trainer stops
    assert here[0] == there[0]
    assert here[2] == there[2]
    assert here[1] != there[1]  # not a step that is logged


def test_logged_losses_are_those_of_a_step_however_many_are_averaged(scene, tmp_path):
    def first_losses(folder, **fields):
        trainer = configure(scene, tmp_path / folder, steps=2, densify_until=0, **fields).setup(
            local_rank=0, world_size=1
        )
        torch.manual_seed(0)
        trainer.setup(test_mode="val")
        for callback in trainer.callbacks[:2]:
            callback.run_callback(0)
        loss, losses, _ = trainer.train_iteration(0)
        return trainer.gradient_accumulation_steps["means"], loss.item(), losses["main_loss"].item()

    one, several = first_losses("one"), first_losses("several", accumulate_from=0, accumulate_images=60_000)
    assert (one[0], several[0]) == (1, 4)
    assert several[1:] == pytest.approx(one[1:], rel=1e-5)


def test_a_stop_before_the_first_step_counts(scene, tmp_path):
    """The button is there before nerfstudio has shown the photographs to the viewer."""

    def before(trainer):
        trainer._init_viewer_state = lambda: setattr(trainer, "stop_training", True)

    trainer = train(configure(scene, tmp_path, steps=3), before=before)
    assert trainer.step == 0
    trainer._init_viewer_state = lambda: None
    trainer.train()
    assert trainer.step == 2


def test_nothing_is_drawn_while_a_checkpoint_is_loaded(scene, alone, tmp_path, monkeypatch):
    config = configure(scene, tmp_path, images=2)
    config.load_dir, config.load_step = alone[1], 20
    trainer = config.setup(local_rank=0, world_size=1)
    locked, load = [], RayGaussPipeline.load_pipeline

    def noting(pipeline, *args):
        locked.append(trainer.train_lock.locked())
        load(pipeline, *args)

    monkeypatch.setattr(RayGaussPipeline, "load_pipeline", noting)
    trainer.setup(test_mode="val")
    assert locked == [True]
    assert not trainer.train_lock.locked()


def test_a_resumed_run_looks_for_no_start_points(scene, alone, tmp_path):
    config = configure(scene, tmp_path, images=2)
    config.load_dir, config.load_step = alone[1], 20
    assert not config.pipeline.datamanager.resumes
    config.setup(local_rank=0, world_size=1).setup(test_mode="val")
    assert config.pipeline.datamanager.resumes


def test_images_per_batch_is_checked(scene, tmp_path):
    with pytest.raises(UserError, match="images-per-batch must be at least 1, got 0"):
        train(configure(scene, tmp_path, images=0))


def test_processes_that_are_not_there(scene, tmp_path):
    with pytest.raises(UserError, match="2 processes were asked for"):
        train(configure(scene, tmp_path), 0, 2)
