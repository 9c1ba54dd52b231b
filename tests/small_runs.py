"""Trainings of a few steps, begun as `ns-train` begins them."""

import copy

import pytest
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.scripts.train import _set_random_seed
from nerfstudio.utils import writer

from hardmine_ns.method import instant_ngp_hardmine, instant_ngp_hardmine_bounded
from ns_support.runs.saved_runs import checkpoints_in
from raygauss_ns import method as raygauss_methods
from raygauss_ns.method import raygauss

FIELDS = {
    "raygauss": {"num_random": 300, "step_size": 0.02, "training_window": 12},
    "instant-ngp-hardmine": {
        "log2_hashmap_size": 10,
        "grid_resolution": 16,
        "hidden_dim": 16,
        "grid_cells_per_update": 512,
        "render_step_size": 0.05,
    },
}
FIELDS["instant-ngp-hardmine-bounded"] = FIELDS["instant-ngp-hardmine"]
METHODS = {s.config.method_name: s.config for s in (raygauss, instant_ngp_hardmine, instant_ngp_hardmine_bounded)}
RAYGAUSS = {s.config.method_name: s.config for s in vars(raygauss_methods).values() if hasattr(s, "config")}
both = pytest.mark.parametrize("method", ["raygauss", "instant-ngp-hardmine"])


def configure(method, scene, output, steps=8, **options):
    config = copy.deepcopy(METHODS[method])
    config.pipeline.datamanager.data = config.data = scene
    config.output_dir, config.experiment_name = output, "test"
    config.vis, config.max_num_iterations = "tensorboard", steps
    config.steps_per_eval_batch = config.steps_per_eval_image = 0
    for name, value in options.items():
        setattr(config, name, value)
    if method != "raygauss":
        config.pipeline.target_num_samples = 1024
    for name, value in FIELDS[method].items():
        setattr(config.pipeline.model, name, value)
    return config


def configure_growing(scene, output, steps, method="raygauss", **fields):
    """A method of raygauss' whose Gaussians are cloned, split and pruned within a few steps, on a Blender scene."""
    config = copy.deepcopy(RAYGAUSS[method])
    config.pipeline.datamanager.dataparser = copy.deepcopy(all_dataparsers["blender-data"])
    config.pipeline.datamanager.data = scene
    config.output_dir, config.experiment_name, config.timestamp = output, "test", "run"
    config.vis, config.max_num_iterations, config.steps_per_eval_image = "tensorboard", steps, 0
    config.viewer.quit_on_train_completion = True
    config.logging.local_writer.enable = False
    growing = {"num_random": 400, "step_size": 0.02, "densify_from": 0, "densify_least": 3, "prune_every": 2}
    for name, value in (growing | fields).items():
        setattr(config.pipeline.model, name, value)
    return config


def begin(config, at=None, act=None):
    """Train as `ns-train` does; call `act` once the step `at` is done."""
    writer.EVENT_WRITERS.clear()
    config.set_timestamp()
    config.print_to_terminal()
    config.save_config()
    _set_random_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    if act is not None:
        here = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
        trainer.callbacks.append(TrainingCallback(here, lambda step: act(trainer) if step == at else None))
    trainer.train()
    writer.EVENT_WRITERS.clear()  # other tests look at those of their own trainings
    return trainer


def steps_in(trainer):
    return [checkpoint.step for checkpoint in checkpoints_in(trainer.checkpoint_dir)]


def said(capsys):
    return " ".join(capsys.readouterr().out.split())
