"""Opening a finished run in this package's own commands, without executing what its config.yml says.

nerfstudio's `eval_setup` does the same with a loader that calls any function that the file names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import Pipeline

from ns_support.commands.loading import load_finished
from ns_support.errors import UserError
from ns_support.runs.saved_config import read_config


def open_finished(
    path: Path, test_mode: Literal["test", "val", "inference"], change: Callable[[Any], Any] | None = None
) -> tuple[TrainerConfig, Pipeline]:
    """The configuration of a run, and its pipeline with the newest complete checkpoint.

    Args:
        path: the run's config.yml.
        test_mode: "inference" opens no image; "test" and "val" name the split to evaluate on.
        change: returns the configuration as the pipeline is to be set up from it; None: as it was saved.

    Raises:
        UserError: the configuration or the checkpoint is damaged, refers to what is not on the list, or is of a method
            that is not installed.
    """
    from nerfstudio.configs.method_configs import all_methods  # late: imports every installed method

    config: Any = read_config(path)
    known: Any = all_methods.get(config.method_name)
    if known is None or not hasattr(known, "pipeline"):
        raise UserError(f"{path} is of a run of {config.method_name!r}, a method that is not installed here.")
    config.pipeline.datamanager._target = known.pipeline.datamanager._target
    if change is not None:
        config = change(config)
    config.load_dir = config.get_checkpoint_dir()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline: Any = config.pipeline.setup(device=device, test_mode=test_mode)
    pipeline.eval()
    load_finished(config, pipeline)
    return config, pipeline
