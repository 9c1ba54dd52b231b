"""What a training writes to TensorBoard and to wandb, read back from their files."""

import copy

import pytest
import torch
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.utils import writer
from small_scenes import write_disc
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hardmine_ns.method import instant_ngp_hardmine
from raygauss_ns.method import raygauss

SIDE = 36
"""Pixels on a side of the images: enough for LPIPS, more than the training window."""
WINDOW = 20
STEPS = 7
EVERY = 3
"""Steps between two evaluations on an image."""

FIELDS = {
    "raygauss": {"num_random": 300, "step_size": 0.02, "training_window": WINDOW, "accumulate_images": 1},
    "instant-ngp-hardmine": {
        "log2_hashmap_size": 12,
        "grid_resolution": 16,
        "hidden_dim": 16,
        "grid_cells_per_update": 512,
        "render_step_size": 0.05,
    },
}
METHODS = {spec.config.method_name: spec.config for spec in (raygauss, instant_ngp_hardmine)}
TRAIN = {
    "raygauss": {"psnr", "gaussian_count"},
    "instant-ngp-hardmine": {"psnr", "mining_fraction", "mining_tau", "num_rays_per_batch", "num_samples_per_batch"},
}
SPEED = {"Train Steps / Sec", "Train Rays / Sec", "Train Iter (time)"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A disc seen from four sides."""
    return write_disc(tmp_path_factory.mktemp("scene"), SIDE)


@pytest.fixture
def writers():
    """nerfstudio's list of writers, without those of an earlier run, whose folder may be gone."""
    writer.EVENT_WRITERS.clear()
    yield writer.EVENT_WRITERS
    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()


def train(method, scene, folder, vis):
    """A few steps with nerfstudio's trainer; the trainer, and rays of each step."""
    torch.manual_seed(0)
    config = copy.deepcopy(METHODS[method])
    config.pipeline.datamanager.dataparser = copy.deepcopy(all_dataparsers["blender-data"])
    config.pipeline.datamanager.data = scene
    config.output_dir, config.experiment_name, config.timestamp = folder, "logs", "run"
    config.vis, config.max_num_iterations = vis, STEPS
    config.steps_per_eval_image, config.steps_per_eval_batch, config.logging.steps_per_log = EVERY, 0, 1
    config.logging.local_writer.enable = False
    config.viewer.quit_on_train_completion = True
    if method != "raygauss":
        config.pipeline.target_num_samples, config.pipeline.min_num_rays = 4096, 8  # the rays of a step change
    for name, value in FIELDS[method].items():
        assert hasattr(config.pipeline.model, name)
        setattr(config.pipeline.model, name, value)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup(test_mode="val")
    trainer.pipeline.model.lpips = lambda image, truth: 0.25  # the weights are on the network
    trainer.train()
    return trainer


def expected_names(method):
    images = {"psnr", "ssim", "lpips"} | ({"gaussian_count"} if method == "raygauss" else set())
    return (
        SPEED
        | {f"Train Metrics Dict/{name}" for name in TRAIN[method]}
        | {f"Eval Images Metrics/{name}" for name in images}
    )


@pytest.mark.parametrize("method", sorted(METHODS))
def test_tensorboard(method, scene, tmp_path, writers):
    trainer = train(method, scene, tmp_path, "tensorboard")
    for known in writers:
        known.tb_writer.flush()
    events = EventAccumulator(str(trainer.base_dir), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    assert expected_names(method) <= scalars, sorted(scalars)

    def values(name):
        return {event.step: event.value for event in events.Scalars(name)}

    assert list(values("Train Metrics Dict/psnr")) == list(range(STEPS))
    assert list(values("Train Steps / Sec")) == list(range(2, STEPS))
    assert list(values("Eval Images Metrics/lpips").values()) == [0.25] * 2
    rays, steps = values("Train Rays / Sec"), values("Train Steps / Sec")
    # Of the first step that counts: both are the rates of that one alone, a step's overhead apart.
    per_step = rays[2] / steps[2]
    if method == "raygauss":
        assert per_step == pytest.approx(WINDOW**2, rel=0.1)
    else:
        assert per_step == pytest.approx(values("Train Metrics Dict/num_rays_per_batch")[2], rel=0.1)
        fractions, taus = values("Train Metrics Dict/mining_fraction"), values("Train Metrics Dict/mining_tau")
        assert all(0 < fractions[step] <= 1 and taus[step] >= 1 for step in range(1, STEPS))
        assert taus[STEPS - 1] > 1  # has moved
    (first, _) = events.Images("Eval Images/img")
    assert (first.height, first.width) == (SIDE, 3 * SIDE)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_wandb(method, scene, tmp_path, writers, monkeypatch):
    """Without a network: wandb then writes what it would send to a file."""
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(method, scene, tmp_path, "wandb")
    wandb.teardown()  # waits until all is written
    store = DataStore()
    store.open_for_scan(str(next(tmp_path.rglob("*.wandb"))))
    names = set()
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        names |= {item.key or item.nested_key[0] for item in record.history.item}
    assert expected_names(method) | {"Eval Images/img"} <= names, sorted(names)
