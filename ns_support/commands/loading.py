"""Loading a finished run of one of this package's methods in nerfstudio's commands.

`ns-eval`, `ns-viewer`, `ns-render`, `ns-export` and `raygauss-export` all use `eval_setup`. It takes the file with the
highest number in the run's folder, complete or not, and loads the parts that fit. For runs of this package it is made
to call `load_finished` instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nerfstudio.configs.experiment_config import ExperimentConfig

from ns_support.errors import UserError
from ns_support.runs.saved_runs import find_checkpoint, naming, read_checkpoint
from ns_support.runs.trained_on import KEY, moved, trained_on
from ns_support.terminal import say, warn

LOCAL_HOST = "127.0.0.1"
"""The default address of a viewer. Anyone who can reach a viewer can stop the training."""


def prepare_loading() -> None:
    """Replace nerfstudio's loading function by `load_finished`, and its viewer's address by this machine's only.

    Called when a pipeline is made, before nerfstudio looks up these functions. An import would be too early: plugins
    are imported before the functions are defined.
    """
    utilities = sys.modules.get("nerfstudio.utils.eval_utils")
    if utilities is not None and not getattr(utilities.eval_load_checkpoint, "is_ours", False):
        utilities.eval_load_checkpoint = _for_our_runs(utilities.eval_load_checkpoint, load_finished)  # type: ignore[attr-defined]
    for name in ("nerfstudio.scripts.viewer.run_viewer", "__main__"):
        command = sys.modules.get(name)
        start = getattr(command, "_start_viewer", None)
        if command is not None and start is not None and not getattr(start, "is_ours", False):
            command._start_viewer = _for_our_runs(  # type: ignore[attr-defined]
                start, lambda config, pipeline, step, start=start: start(_local(config), pipeline, step)
            )


def _for_our_runs(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    def chosen(config: ExperimentConfig, *args: Any) -> Any:
        is_ours = type(config).__module__.startswith("ns_support.")
        return (ours if is_ours else theirs)(config, *args)

    chosen.is_ours = True  # type: ignore[attr-defined]
    return chosen


def load_finished(config: Any, pipeline: Any) -> tuple[Path, int]:
    """Load a run's newest complete checkpoint into a pipeline.

    Args:
        config: the run's configuration; its `load_dir` is the folder of the run's checkpoints.
        pipeline: set up by that configuration.

    Returns:
        The checkpoint's path and step.

    Raises:
        UserError: there is none, or it does not fit the configuration.
    """
    if not config.load_dir.is_dir():
        raise UserError(
            f"There is no folder {config.load_dir}, where the run's configuration says that its checkpoints are. Run "
            "the command in the folder that training was started in; a run that never saved has none."
        )
    path = find_checkpoint(config.load_dir, config.load_step)
    state = read_checkpoint(path)
    method = state.get("method_name", config.method_name)
    if method != config.method_name:
        raise UserError(
            f"{path} is a checkpoint of {method}, and the run's configuration is one of {config.method_name}."
        )
    before = state.get(KEY)
    difference = None if before is None else moved(before, trained_on(pipeline.datamanager))
    if difference is not None:
        warn(f"The data are not those that the run was trained on: {difference}.")
    with naming(path):
        pipeline.load_pipeline(state["pipeline"], state["step"])
    pipeline.loaded_step = state["step"]
    say(f"Loaded {path}.")
    return path, state["step"]


def _local(config: Any) -> Any:
    """A viewer's configuration, reachable from this machine only unless the command line sets an address."""
    said = any(word.replace("_", "-").startswith("--viewer.websocket-host") for word in sys.argv)
    if config.viewer.websocket_host == "0.0.0.0" and not said:
        config.viewer.websocket_host = LOCAL_HOST
    return config
