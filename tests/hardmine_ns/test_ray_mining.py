"""Rays drawn where images are wrong, inside nerfstudio's pipeline: what they are, what is saved, what is refused."""

import copy

import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from hardmine_ns.data import RayDataManagerConfig
from hardmine_ns.method import instant_ngp_hardmine_bounded
from hardmine_ns.pipeline import AdaptiveRaysPipeline
from ns_support.concurrency.processes import Processes
from ns_support.errors import UserError


def pipeline(folder, mode="val", **settings) -> AdaptiveRaysPipeline:
    config = copy.deepcopy(instant_ngp_hardmine_bounded.config.pipeline)
    config.datamanager.data = folder
    config.target_num_samples, config.ray_rule = 1024, "blocks"
    model = {"log2_hashmap_size": 10, "max_res": 64, "grid_resolution": 32, "hidden_dim": 16, "render_step_size": 0.06}
    for name, value in model.items():
        setattr(config.model, name, value)
    for name, value in settings.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    made: AdaptiveRaysPipeline = config.setup(device="cpu", test_mode=mode)
    return made.train()


def test_a_step_is_remembered_and_the_loss_is_weighted(ball):
    found = pipeline(ball, min_num_rays=200)
    memory = found.datamanager.memory
    errors = torch.rand(len(memory.errors))
    memory.errors.copy_(errors)
    memory.costs.fill_(1)
    _, losses, metrics = found.get_train_loss_dict(0)
    seen = found.model.ray_findings
    weights = memory.weights(seen.pixels)
    assert weights.max() > 1.2 > 0.8 > weights.min()
    assert float(losses["rgb_loss"]) == pytest.approx(float((weights * seen.errors).mean()), rel=1e-5)
    assert float(metrics["psnr"]) == pytest.approx(-10 * float(losses["rgb_loss"].log10()), abs=1e-3)
    assert metrics["ray_mining_gain"] > 1
    touched = memory.blocks_of(seen.pixels).unique()
    assert (memory.errors[touched] != errors[touched]).all()
    assert (memory.costs[touched] != 1).any()


def test_uniform_rays_weigh_nothing(ball):
    found = pipeline(ball, ray_rule="uniform")
    assert found.datamanager.memory is None
    assert "ray_weights" not in found.datamanager.next_train(0)[1]
    assert "ray_mining_gain" not in found.get_train_loss_dict(0)[2]


def test_the_memory_is_in_checkpoints_and_need_not_be(ball):
    found, other, uniform = pipeline(ball), pipeline(ball), pipeline(ball, ray_rule="uniform")
    for step in range(3):
        found.get_train_loss_dict(step)
    state = found.state_dict()
    other.load_state_dict(state)
    assert (other.datamanager.memory.errors >= 0).any()
    assert torch.equal(other.datamanager.memory.errors, found.datamanager.memory.errors)
    uniform.load_state_dict(state)  # without one
    other.load_state_dict(uniform.state_dict())  # of a version that had none
    assert (other.datamanager.memory.errors == -1).all()


def test_commands_that_look_at_no_image_open_such_a_run(ball):
    """`ns-render`, `ns-viewer` and the exports."""
    found, opened = pipeline(ball), pipeline(ball, "inference")
    found.get_train_loss_dict(0)
    opened.load_pipeline(found.state_dict(), 1)
    assert opened.datamanager.memory is None
    table = found.model.field.encoding.table
    assert torch.equal(opened.model.field.encoding.table, table)


def test_pixels_are_those_of_the_shuffled_images(ball):
    found = pipeline(ball).datamanager
    for step in range(3):
        _, batch = found.next_train(step)
        for i in range(0, len(batch["indices"]), 7):
            image, row, column = batch["indices"][i].tolist()
            assert torch.equal(batch["image"][i], found.train_dataset[image]["image"][row, column])


def mined(folder, **settings):
    config = RayDataManagerConfig(dataparser=NerfstudioDataParserConfig(data=folder, eval_mode="all"), **settings)
    manager = config.setup(device="cpu")
    manager.mine_rays(0.2, 1.0, Processes())
    return manager


def test_only_pixels_that_masks_show(photos):
    manager = mined(photos(4, mask=255))
    assert manager.memory.num_pixels == 4 * 24 * 24
    mask = manager.train_image_dataloader.cached_collated_batch["mask"]
    mask.zero_()
    mask[:, 3:5, 20:] = 1
    manager.mine_rays(0.2, 1.0, Processes())
    _, batch = manager.next_train(0)
    assert batch["mask"].all()
    assert batch["indices"][:, 1:].aminmax(dim=0).min.tolist() >= [3, 20]
    mask.zero_()
    with pytest.raises(UserError, match="masks hide every pixel"):
        manager.mine_rays(0.2, 1.0, Processes())


def test_images_of_several_sizes(photos):
    manager = mined(photos(4))
    batch = manager.train_image_dataloader.cached_collated_batch
    batch["image"] = [image[: 24 - 5 * i] for i, image in enumerate(batch["image"])]
    manager.mine_rays(0.2, 1.0, Processes())
    assert manager.memory.num_pixels == (24 + 19 + 14 + 9) * 24
    manager.train_pixel_sampler.set_num_rays_per_batch(500)
    found = manager.train_pixel_sampler.sample(batch)
    places = batch["image_idx"].argsort()[found["indices"][:, 0]]
    for i in range(0, 500, 11):
        _, row, column = found["indices"][i].tolist()
        assert torch.equal(found["image"][i], batch["image"][int(places[i])][row, column])


def test_images_that_are_not_all_in_memory_are_drawn_uniformly(photos):
    assert mined(photos(4), train_num_images_to_sample_from=2).memory is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ray_uniform_share", 0.0, r"--pipeline.ray-uniform-share must be in \(0, 1\]"),
        ("ray_weight_power", 1.5, r"--pipeline.ray-weight-power must be in \[0, 1\]"),
    ],
)
def test_settings_out_of_range(ball, name, value, message):
    with pytest.raises(UserError, match=message):
        pipeline(ball, **{name: value})
