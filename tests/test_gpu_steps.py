"""What training steps wait for and launch on a GPU, as far as that can be counted without one (`pretended_gpu`).

A wait in mid-step stops the host from preparing what comes next, and the GPU idles until it has caught up; each launch
costs the host about 5 us. So both have budgets here. Who lowers a number lowers its budget; who has to raise one says
why beside it.
"""

import copy
import json
import math

import numpy as np
import pytest
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.engine.callbacks import TrainingCallbackLocation as Where
from small_runs import configure
from small_scenes import write_disc, write_nerfstudio

pytest.importorskip("triton")

from pretended_gpu import pretended_gpu

STEPS = 20
"""Length of the training, which decides what is corrected when."""
ORDINARY = 6
"""A step with whatever happens at each step, corrections included, and nothing that happens now and then."""
ROUND = 7
"""A step after which the occupancy grid is updated."""


def counted(config, monkeypatch, step=ORDINARY, others=2):
    """Counts of a step as the trainer takes it, with its callbacks; after some others, in which caches are filled."""
    config.machine.device_type = "cuda"
    with pretended_gpu(monkeypatch) as counts:
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        trainer.pipeline.train()
        trainer._last_save = math.inf
        for at in range(step - others, step + 1):
            counts.clear()
            for callback in trainer.callbacks:
                callback.run_callback_at_location(at, Where.BEFORE_TRAIN_ITERATION)
            trainer.train_iteration(at)
            for callback in trainer.callbacks:
                callback.run_callback_at_location(at, Where.AFTER_TRAIN_ITERATION)
    print(counts)
    return counts


def check(counts, waits, kernels):
    assert counts.waits.total() <= waits, str(counts)
    assert counts.kernels.total() <= kernels, str(counts)


def write_photos(folder, *widths):
    """Photographs of these widths (and a few pixels of height), with masks, through a lens that distorts."""
    views, masks = [], []
    folder.mkdir()
    for i, width in enumerate(widths):
        c, s = math.cos(i), math.sin(i)
        image = np.full((24, width, 3), 40 * i + 30, np.uint8)
        image[:12] = 200
        views.append((f"images/{i}", image, [[c, 0, s, 3 * s], [0, 1, 0, 0], [-s, 0, c, 3 * c], [0, 0, 0, 1]]))
        masks.append(np.full((24, width), 255, np.uint8))
        masks[-1][:3] = 0
    camera = {"fl_x": 30.0, "fl_y": 30.0, "cx": 15.0, "cy": 12.0, "k1": 0.01, "camera_model": "OPENCV"}
    write_nerfstudio(folder, views, masks, h=24, **camera)
    content = json.loads((folder / "transforms.json").read_text())
    for frame, width in zip(content["frames"], widths, strict=True):
        frame["w"] = width
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def configured(method, scene, output, corrects=False, **fields):
    config = configure(method, scene, output, STEPS)
    fields = {"exposure": "on" if corrects else "off", "ignore_moving": corrects} | fields
    for name, value in fields.items():
        setattr(config.pipeline.model, name, value)
    config.pipeline.model.camera_optimizer.mode = "SO3xR3" if corrects else "off"
    if method == "raygauss":
        config.pipeline.datamanager.triangulated_points = 0
    else:
        # The defaults with a GPU.
        config.pipeline.ray_rule = "uniform"
        fields = {"merge_most": 1, "grid_blocks_first": False} | fields
        for name, value in fields.items():
            setattr(config.pipeline.model, name, value)
    return config


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({"training_window": 0}, (0, 60)),
        ({"training_window": 12, "background_color": "random", "step_growth": 0.01}, (0, 80)),
        ({"training_window": 12, "window_rule": "blocks"}, (0, 90)),
    ],
)
def test_raygauss(fields, budget, tmp_path, monkeypatch):
    config = configured("raygauss", write_disc(tmp_path / "scene"), tmp_path, sh_degree_interval=0, **fields)
    config.pipeline.datamanager.dataparser = copy.deepcopy(all_dataparsers["blender-data"])
    if "background_color" in fields:
        config.pipeline.datamanager.dataparser.alpha_color = None
    check(counted(config, monkeypatch), *budget)


def test_raygauss_with_corrections(tmp_path, monkeypatch):
    """Of photographs with masks, through a lens that distorts."""
    scene = write_photos(tmp_path / "scene", 30, 30, 30)
    check(counted(configured("raygauss", scene, tmp_path, True, training_window=0), monkeypatch), 0, 590)


@pytest.mark.parametrize(("rule", "budget"), [("poisson", (0, 152)), ("off", (0, 132))])
def test_hardmine(rule, budget, tmp_path, monkeypatch):
    scene = write_disc(tmp_path / "scene")
    config = configured("instant-ngp-hardmine-bounded", scene, tmp_path, mining_rule=rule)
    check(counted(config, monkeypatch), *budget)


def test_hardmine_with_an_update_of_the_grid(tmp_path, monkeypatch):
    scene = write_disc(tmp_path / "scene")
    config = configured("instant-ngp-hardmine-bounded", scene, tmp_path)
    check(counted(config, monkeypatch, ROUND), 0, 210)


def test_hardmine_with_corrections(tmp_path, monkeypatch):
    """Of photographs with masks, through a lens that distorts."""
    scene = write_photos(tmp_path / "scene", 30, 30, 30)
    check(counted(configured("instant-ngp-hardmine", scene, tmp_path, True), monkeypatch), 0, 605)


@pytest.mark.parametrize(
    ("method", "corrects", "budget"),
    [
        ("raygauss", False, (0, 90)),
        ("raygauss", True, (0, 590)),
        ("instant-ngp-hardmine", False, (0, 400)),
        ("instant-ngp-hardmine", True, (0, 605)),
    ],
)
def test_photographs_of_several_sizes(method, corrects, budget, tmp_path, monkeypatch):
    """With masks, each size through a lens of its own; with all corrections or none."""
    config = configured(method, write_photos(tmp_path / "scene", 30, 24, 36), tmp_path, corrects)
    if method == "raygauss":
        config.pipeline.model.training_window = 0
    check(counted(config, monkeypatch, others=ORDINARY), *budget)  # each lens was there twice
