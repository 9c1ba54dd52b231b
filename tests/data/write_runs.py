"""Writes what `test_saved_by_earlier_versions.py` reads: a run of each method, and the figures that it gave then.

    PYTHONPATH=tests python tests/data/write_runs.py METHOD...

A run that is there is never written again: it stands for the runs that users have. Only a method that is not there yet
is added.
"""

import json
import os
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import yaml
from nerfstudio.scripts.train import _set_random_seed
from nerfstudio.utils.eval_utils import eval_setup
from small_runs import FIELDS, begin
from small_scenes import write_disc

from hardmine_ns import method as hardmine
from raygauss_ns import method as raygauss

HERE = Path(__file__).resolve().parent
SPECIFICATIONS = (
    raygauss.raygauss,
    raygauss.raygauss_2408_03356,
    raygauss.raygaussx_2509_07782,
    raygauss.raygaussx_2509_07782_real,
    hardmine.instant_ngp_hardmine,
    hardmine.instant_ngp_hardmine_bounded,
)
CONFIGS = {specification.config.method_name: specification.config for specification in SPECIFICATIONS}
STEPS, MORE_STEPS = 6, 4
AS_SAVED = ["merge_most", "grid_blocks_first", "mining_decay"]
"""Fields of the model that change what a training step does, and whose defaults have changed."""


def small(method):
    """The method's own configuration, with a model of a few kilobytes."""
    config = deepcopy(CONFIGS[method])
    config.pipeline.datamanager.data = config.data = Path("scene")
    config.output_dir, config.experiment_name, config.timestamp = Path("runs"), "disc", "saved"
    config.vis, config.max_num_iterations, config.steps_per_eval_image = "tensorboard", STEPS, 0
    config.steps_per_eval_batch, config.machine.device_type = 0, "cpu"
    ngp = method.startswith("instant-ngp")
    fields = FIELDS["instant-ngp-hardmine" if ngp else "raygauss"]
    if ngp:
        config.pipeline.target_num_samples = 1024
        fields = {**fields, "log2_hashmap_size": 8, "grid_cells_per_update": 256}
    else:
        fields = {**fields, "num_random": 60, "training_window": 12 if config.pipeline.model.training_window else 0}
    for name, value in fields.items():
        setattr(config.pipeline.model, name, value)
    return config


def figures_of(pipeline):
    """What evaluation says, and the colours and depths of the test view."""
    pipeline.eval()
    metrics = pipeline.get_average_eval_image_metrics()
    camera, _ = pipeline.datamanager.next_eval_image(0)
    outputs = pipeline.model.get_outputs_for_camera(camera)
    return {
        "psnr": float(metrics["psnr"]),
        "ssim": float(metrics["ssim"]),
        "rgb": [[round(float(x), 6) for x in pixel] for pixel in outputs["rgb"][::8, ::8].reshape(-1, 3)],
        "depth": [round(float(x), 6) for x in outputs["depth"][::8, ::8].flatten()],
    }


def loaded(folder):
    """The figures of a saved run, read as `ns-eval` reads it."""
    _set_random_seed(0)
    _, pipeline, _, step = eval_setup(folder / "config.yml", test_mode="val")
    return {"step": step, **figures_of(pipeline)}


def resumed(folder):
    """The figures after a few more steps of the saved run, begun as `ns-train --load-dir` begins them.

    With the run's learning rates and its steps along a ray: a version with other defaults is not meant to give the same
    figures.
    """
    config = small(folder.parent.name)
    saved = yaml.load((folder / "config.yml").read_text(), Loader=yaml.Loader)
    config.optimizers |= saved.optimizers
    for now, then, names in (
        (config.pipeline, saved.pipeline, ["ray_rule"]),
        (config.pipeline.model, saved.pipeline.model, AS_SAVED),
    ):
        for name in names:
            if hasattr(now, name):
                setattr(now, name, getattr(then, name))
    config.load_dir, config.max_num_iterations = folder / "nerfstudio_models", MORE_STEPS
    config.timestamp = "resumed"
    trainer = begin(config)
    return {"step": trainer.step, **figures_of(trainer.pipeline)}


def write(method):
    """Train the method for a few steps; keep its folder and its figures."""
    config = small(method)
    begin(config)
    folder = config.get_base_dir()
    figures = {"loaded": loaded(folder), "resumed": resumed(folder)}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(folder.with_name("resumed"))
    for record in folder.glob("events.*"):
        record.unlink()


if __name__ == "__main__":
    os.chdir(HERE)
    if not Path("scene").exists():
        write_disc(Path("scene"))
    for name in sys.argv[1:] or CONFIGS:
        if (HERE / "runs" / "disc" / name).exists():
            sys.exit(f"{name} is there already: what an earlier version wrote is never written again.")
        write(name)
