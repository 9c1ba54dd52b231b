"""Training as nerfstudio's trainer drives it, on a scene of a few pixels."""

import random

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from small_runs import RAYGAUSS, configure_growing

from ns_support.concurrency.processes import Processes
from ns_support.corrections.poses import PoseRefinementConfig
from ns_support.errors import UserError
from ns_support.schedulers import FloatExponentialDecayConfig
from raygauss_ns.cameras import posed_lenses
from raygauss_ns.gaussians.projection import smallest_resolved_scale
from raygauss_ns.training import TrainingHooks, fit_learning_rates

from .conftest import SIDE


def learning_rate(optimizers, name):
    return optimizers.optimizers[name].param_groups[0]["lr"]


def test_learning_rate_of_the_means_is_relative_to_the_camera_extent(make_model, optimizers_of):
    optimizers = optimizers_of(make_model())  # 0.1 -> 0.001
    for _ in range(3):  # twice more changes nothing
        fit_learning_rates(optimizers, 4.0, total_steps=100)
    assert learning_rate(optimizers, "means") == pytest.approx(0.4)
    for _ in range(50):
        optimizers.optimizers["means"].step()
        optimizers.schedulers["means"].step()
    fit_learning_rates(optimizers, 4.0, total_steps=100)
    assert learning_rate(optimizers, "means") == pytest.approx(0.04)
    assert learning_rate(optimizers, "densities") == pytest.approx(0.1)


@pytest.mark.parametrize("total", [10, 100])
def test_decays_end_with_the_training(make_model, optimizers_of, total):
    optimizers = optimizers_of(make_model())
    fit_learning_rates(optimizers, 1.0, total)
    rates = []
    for _ in range(total):
        rates.append(learning_rate(optimizers, "sh_base"))
        optimizers.optimizers["sh_base"].step()
        optimizers.schedulers["sh_base"].step()
    torch.testing.assert_close(torch.tensor(rates), 0.1 * 0.01 ** (torch.arange(total) / total))


def test_a_schedule_that_never_decays_stays(make_model, optimizers_of):
    optimizers = optimizers_of(make_model())
    optimizers.config["quats"]["scheduler"] = None
    del optimizers.schedulers["quats"]
    fit_learning_rates(optimizers, 4.0, 100)
    assert learning_rate(optimizers, "quats") == pytest.approx(0.1)


def test_all_faded_ends_in_a_sentence(make_model, make_cameras, optimizers_of):
    model = make_model(prune_every=1)
    loop = TrainingHooks(model, optimizers_of(model), make_cameras())
    loop.before(1)
    model.cloud.params["densities"].data.zero_()
    with pytest.raises(UserError, match="No Gaussian is left at step 1"):
        loop.after(1)


def test_nothing_changes_within_a_group_of_images(make_model, make_cameras, optimizers_of):
    """The trainer holds gradients of these very parameters until the group's last image."""
    fields = {"schedule_steps": 30_000, "accumulate_from": 0, "accumulate_images": 4, "prune_every": 1}
    model = make_model(**fields, densify_from=0, densify_every=3, densify_least=1, grow_until=0, max_gaussians=600)
    loop = TrainingHooks(model, optimizers_of(model), make_cameras())
    model.density_control.gradient_sum.fill_(1.0)
    counts = []
    for step in range(8):
        loop.before(step)
        loop.after(step)
        counts.append(len(model.cloud))
    # Step 0 is due and step 3 too: both are served when the first group ends; the statistic has gone by the second.
    assert counts == [300] * 3 + [600] * 5


def test_the_optimisers_step_on_the_mean_of_the_images_gradients(scene, tmp_path):
    """Of three steps: each has the gradient of its own loss, and the statistic does not know that they are averaged."""
    random.seed(0)  # as `ns-train` does before it sets a training up
    np.random.seed(0)
    torch.manual_seed(0)
    config = configure_growing(scene, tmp_path, 6, accumulate_from=0, accumulate_images=3, schedule_steps=30_000)
    trainer, summed, means = config.setup(local_rank=0, world_size=1), [], []
    trainer.setup(test_mode="val")
    model, optimizers = trainer.pipeline.model, trainer.optimizers
    optimizers.optimizers["means"].register_step_pre_hook(
        lambda *_: means.append(model.cloud.params["means"].grad.clone())
    )
    for step in range(6):
        model.update_to_step(step)
        before = model.cloud.params["means"].grad
        before = torch.zeros(()) if step % 3 == 0 or before is None else before.clone()
        trainer.train_iteration(step)
        if step % 3 < 2:
            summed.append(model.cloud.params["means"].grad - before)
    assert len(means) == 2
    # Two of the three gradients are known before the optimiser steps; the third is what is left, and like them in size.
    for mean, parts in zip(means, (summed[:2], summed[2:]), strict=True):
        last = 3 * mean - sum(parts)
        sizes = [float(part.norm()) for part in (*parts, last)]
        assert max(sizes) < 3 * min(sizes)
    assert optimizers.accumulated == 3


def test_no_checkpoint_is_written_while_gradients_are_averaged(scene, tmp_path):
    """They are not in it: a save that falls due meanwhile follows once the optimisers have stepped."""
    config = configure_growing(scene, tmp_path, 10, accumulate_from=0, accumulate_images=3, schedule_steps=30_000)
    config.steps_per_save, config.save_only_latest_checkpoint = 4, False
    folder = train(config).checkpoint_dir
    assert sorted(int(path.stem.split("-")[1]) for path in folder.iterdir()) == [5, 8, 9]


def test_an_image_stays_the_same_when_gaussians_are_reordered(make_model, make_cameras, optimizers_of):
    """Up to the order in which floats are added up; the loop re-orders when it is due, and only then."""
    model = make_model(reorder_every=3, limit_scales=False, densify_until=0).eval()
    loop = TrainingHooks(model, optimizers_of(model), make_cameras())
    camera = make_cameras()[0:1]
    image, means = model.get_outputs_for_camera(camera), model.cloud.params["means"].detach().clone()
    changed = []
    for step in range(5):
        loop.before(step)
        loop.after(step)
        changed.append(not torch.equal(means, model.cloud.params["means"]))
    assert changed == [False, False, False, True, True]
    for name in ("rgb", "depth", "accumulation"):
        torch.testing.assert_close(model.get_outputs_for_camera(camera)[name], image[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("every", [0, 500])
def test_a_reordering_that_is_not_due(every, make_model, make_cameras, optimizers_of):
    model = make_model(reorder_every=every)
    loop = TrainingHooks(model, optimizers_of(model), make_cameras())
    means = model.cloud.params["means"].detach().clone()
    loop.before(0)
    loop.after(0)
    assert torch.equal(means, model.cloud.params["means"])


# ---- with nerfstudio's trainer ------------------------------------------------------------------------------------


def train(config):
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup(test_mode="val")
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("strategy", "windows"), [("relocation", "uniform"), ("published", "uniform"), ("relocation", "blocks")]
)
def test_a_resumed_training_continues_as_if_it_had_never_stopped(strategy, windows, scene, tmp_path):
    """32 steps against those after step 16 of the same training: the same Gaussians, bit for bit.

    Clones, splits, prunes, re-orderings, windows of the image and random backgrounds fall on both sides of the stop,
    which lies between two rounds of densification and where images are still half as large. The learning rates decay
    over all 32 steps, and gradients are averaged late.
    """
    fields = {
        "strategy": strategy,
        "densify_threshold": 1e-4,
        "densify_until": 20_000,
        "max_gaussians": 900,
        "reorder_every": 5,
        "background_color": "random",
        "training_window": 15,
        "window_rule": windows,
        "accumulate_from": 25_000,
        "accumulate_images": 2000,  # 2 of 32 steps
        "num_downscales": 1,
        "full_resolution_from": 25_000,
        "camera_optimizer": PoseRefinementConfig(mode="SO3xR3"),
        "exposure": "on",
        "ignore_moving": True,
    }
    once, again = (
        configure_growing(scene, tmp_path / "a", 32, **fields),
        configure_growing(scene, tmp_path / "b", 15, **fields),
    )
    for config in (once, again):
        config.pipeline.datamanager.dataparser.alpha_color = None
        config.save_only_latest_checkpoint, config.steps_per_save = False, 16
    whole = train(once)
    again.load_dir, again.load_step = whole.checkpoint_dir, 16
    resumed = train(again)
    a, b = whole.pipeline.model, resumed.pipeline.model
    assert whole.step == resumed.step == 31
    assert len(a.cloud) == len(b.cloud) != 400
    assert a.total_steps == b.total_steps == 32
    for name in a.state_dict():
        assert torch.equal(a.state_dict()[name], b.state_dict()[name]), name
    assert bool(a.camera_optimizer.pose_adjustment.any())
    assert bool(a.exposure.adjustments.any())
    assert float(a.moving.errors.max()) > 0
    for name, optimizer in whole.optimizers.optimizers.items():
        other = resumed.optimizers.optimizers[name]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"])
        parameter, resumed_parameter = (each.param_groups[0]["params"][0] for each in (optimizer, other))
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, other.state[resumed_parameter][key]), (name, key)


def test_schedules_follow_the_number_of_steps(scene, tmp_path):
    trainer = train(configure_growing(scene, tmp_path, 6))
    model = trainer.pipeline.model
    assert model.total_steps == 6
    assert model.density_control.schedule.last == 5
    assert model.density_control.schedule.grow_until == 3
    final = trainer.optimizers.config["densities"]["scheduler"].lr_final
    assert learning_rate(trainer.optimizers, "densities") == pytest.approx(final)
    assert trainer.optimizers.optimizers["sg_amplitudes"].state[model.cloud.params["sg_amplitudes"]]["step"] > 0


def test_schedules_keep_the_length_they_are_given(scene, tmp_path):
    model = train(configure_growing(scene, tmp_path, 2, schedule_steps=3000)).pipeline.model
    assert model.total_steps == 3000
    assert model.density_control.schedule.last == 2500
    assert model.density_control.schedule.grow_until == 1500


@pytest.mark.parametrize("config", RAYGAUSS.values(), ids=RAYGAUSS)
def test_every_method_has_a_learning_rate_for_every_parameter(config, make_model, make_cameras):
    corrected = {"camera_optimizer": PoseRefinementConfig(mode="SE3"), "exposure": "on", "background_color": "learned"}
    groups = make_model(cameras=make_cameras(), **corrected).get_param_groups()
    assert set(config.optimizers) == set(groups)
    assert set(make_model(cameras=make_cameras(), exposure="off").get_param_groups()) < set(groups)
    for entry in config.optimizers.values():
        schedule = entry["scheduler"]
        assert schedule is None or (isinstance(schedule, FloatExponentialDecayConfig) and schedule.max_steps == 30_000)


@pytest.mark.parametrize("name", RAYGAUSS)
def test_smoke_every_method_trains_and_its_saved_config_reloads(name, scene, tmp_path):
    config = configure_growing(scene, tmp_path, 2, name, num_random=200)
    config.save_config()
    reloaded = yaml.load((config.get_base_dir() / "config.yml").read_text(), Loader=yaml.Loader)
    assert reloaded.pipeline.model == config.pipeline.model
    assert reloaded.optimizers == config.optimizers
    trainer = train(reloaded)
    assert trainer.step == 1
    assert all(bool(p.isfinite().all()) for p in trainer.pipeline.model.parameters())


# ---- the statistic does not depend on how the image is cut into pixels and windows ----------------------------------


def statistic(make_model, size, scale, windows=1, window=0):
    """Of 40 Gaussians in the middle of one camera's image of `size` pixels on a side, which shows stripes of colour."""
    model = make_model(num_random=40, initial_scale=scale, training_window=window).train()
    pose = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 5]]])
    camera = Cameras(pose, 0.6 * size, 0.6 * size, size / 2, size / 2, size, size)[0:1]
    v, u = (torch.stack(torch.meshgrid(*(torch.arange(size),) * 2, indexing="ij")) + 0.5) / size
    image = torch.stack([0.5 + 0.5 * torch.sin(9 * u + 4 * v + phase) for phase in (0.0, 2.0, 4.0)], -1)
    for step in range(windows):
        model.update_to_step(step)
        model.get_loss_dict(model.get_outputs(camera), {"image": image})["main_loss"].backward()
        model.density_control.add_observed(Processes())
    return model.density_control.statistic


@pytest.mark.parametrize("size", [50, 200])
def test_statistic_does_not_depend_on_the_resolution(make_model, size):
    """Gaussians that span some pixels: within 10 % on average. A gradient in pixels would differ by a factor of 2."""
    wanted = statistic(make_model, 100, scale=0.4)
    ratio = statistic(make_model, size, scale=0.4).sum() / wanted.sum()
    assert ratio.item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("window", [40, pytest.param(60, marks=pytest.mark.slow)])
def test_statistic_does_not_depend_on_the_window(make_model, window):
    """Of Gaussians smaller than the window, away from the image's edge: within 20 % on average.

    Without the window's share of the image it would be 2.8 and 6.3 times as large.
    """
    wanted = statistic(make_model, 100, scale=0.25)
    ratio = statistic(make_model, 100, scale=0.25, windows=150, window=window).sum() / wanted.sum()
    assert ratio.item() == pytest.approx(1.0, abs=0.2)


def test_scales_are_bounded_from_below_by_half_a_pixel(make_model, make_cameras, optimizers_of):
    model = make_model(num_random=20, prune_every=3, densify_until=0)
    cameras = make_cameras(2)
    loop = TrainingHooks(model, optimizers_of(model), cameras)
    params = model.cloud.params
    for step in range(5):
        params["scales"].data.fill_(-20.0)
        if step == 3:  # at which the bounds must follow those that are left
            params["densities"].data[::2] = 0.0
        loop.before(step)
        loop.after(step)
        floor = smallest_resolved_scale(params["means"].detach(), *posed_lenses(cameras, torch.device("cpu")))
        torch.testing.assert_close(params["scales"].detach().exp(), floor[:, None].expand(-1, 3))
    assert len(model.cloud) == 10


def test_images_grow_and_step_and_bounds_follow(scene, tmp_path):
    """Half the size for 6 of 10 steps: rays, samples and smallest scales as of such images, then as they are."""
    config = configure_growing(scene, tmp_path, 10, num_downscales=1, densify_until=0, max_step=0.03, step_growth=1e-3)
    config.pipeline.model.training_window = 0
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    model, seen = trainer.pipeline.model, []
    serve, render = trainer.pipeline.datamanager.next_train, model.render

    def served(step):
        camera, batch = serve(step)
        seen.append([int(camera.height), float(camera.fx)])
        return camera, batch

    def rendered(rays, gaussians, settings, *corrections):
        seen[-1] += [settings.step, settings.max_step]
        assert model.cast_settings.step == pytest.approx(0.02)  # what others render with, whatever is trained on
        return render(rays, gaussians, settings, *corrections)

    trainer.pipeline.datamanager.next_train, model.render = served, rendered
    floors = []

    def note(step):
        ratio = model.cloud.params["scales"].min(-1).values.exp() / model.density_control.log_scale_floor.exp()
        floors.append(float(ratio.min()))
        model.cloud.params["scales"].data.fill_(-20.0)

    trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], note))
    trainer.train()
    focal = float(trainer.pipeline.datamanager.train_dataset.cameras.fx[0])
    small = [SIDE // 2, pytest.approx(focal / 2), pytest.approx(0.04), pytest.approx(0.04)]
    assert seen == [small] * 6 + [[SIDE, pytest.approx(focal), pytest.approx(0.02), pytest.approx(0.03)]] * 4
    assert floors[1:] == [pytest.approx(2.0)] * 5 + [pytest.approx(1.0)] * 4


def test_images_are_used_as_they_are_if_nothing_else_is_wanted(make_model, make_cameras):
    cameras = make_cameras(2, height=300, width=500)
    assert make_model(cameras=cameras).downscales == 1
    assert make_model(cameras=cameras, num_downscales=0).downscales == 0
    assert make_model(cameras=cameras, full_resolution_from=0).downscales == 0


def test_there_are_two_gaussians_at_most_for_each_pixel_of_an_image_at_its_size(
    make_model, make_cameras, optimizers_of
):
    """Half the size for 6 of 10 steps: 22 x 22 pixels, then 44 x 44."""
    cameras = make_cameras(2, height=44, width=44)
    fields = {"densify_from": 0, "densify_every": 1, "densify_least": 1, "grow_until": 0, "max_gaussians": 3000}
    model = make_model(cameras=cameras, num_downscales=1, schedule_steps=10, prune_every=100, **fields)
    loop, counts = TrainingHooks(model, optimizers_of(model), cameras), []
    for step in range(8):
        loop.before(step)
        model.density_control.gradient_sum.fill_(1.0)
        loop.after(step)
        counts.append(len(model.cloud))
    assert counts == [600, 968, 968, 968, 968, 968, 1936, 3000]
