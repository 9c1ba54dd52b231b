"""Small runs of both methods: configurations, training, evaluation, comparison of checkpoints."""

from __future__ import annotations

import json
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from captures.colmap import colmap
from captures.sphere import COUNT, pose
from captures.writing import ANGLE, capture, points, write, write_images

METHODS = ("raygauss", "instant-ngp-hardmine-bounded")


def preload() -> None:
    """Import what the children need, so that each of them does not."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch.utils.tensorboard

    import raygauss_ns.export
    import raygauss_ns.model  # noqa: F401
    from raygauss_ns.casting.cpu import march  # noqa: F401

    torch.set_num_threads(1)


def make_scenes(folder: Path) -> Path:
    """Write the same capture as `blender`, `nerfstudio` and `colmap`, 12 images of 40 x 56 pixels each."""
    for name in ("blender", "nerfstudio", "colmap"):
        (folder / name).mkdir(parents=True)
    capture(ply_file_path="sparse_pc.ply")(folder / "nerfstudio")
    points(folder / "nerfstudio", "\n".join(f"{0.1 * i:g} {0.05 * i - 0.3:g} {-0.07 * i:g}" for i in range(20)))
    (ply,) = (folder / "nerfstudio").glob("*.ply")
    ply.rename(folder / "nerfstudio" / "sparse_pc.ply")
    colmap("PINHOLE", ())(folder / "colmap")
    write_images(folder / "blender")
    frames = [{"file_path": f"./images/{i:03d}", "transform_matrix": pose(i).tolist()} for i in range(COUNT)]
    for split, some in (("train", frames[:-2]), ("val", frames[-2:-1]), ("test", frames[-1:])):
        write(folder / "blender", {"camera_angle_x": ANGLE, "frames": some}, f"transforms_{split}.json")
    return folder


def config_of(method: str, data: Path, output: Path, steps: int, **changes: Any) -> Any:
    """The configuration of a small training.

    Args:
        method: name.
        data: folder.
        output: folder.
        steps: length.
        changes: settings, with "__" for the dots in their names.
    """
    from nerfstudio.configs.method_configs import all_methods

    config: Any = deepcopy(all_methods[method])
    config.data = config.pipeline.datamanager.data = data
    config.output_dir, config.experiment_name, config.timestamp = output, "trial", "now"
    config.vis, config.max_num_iterations, config.steps_per_save = "tensorboard", steps, 1000
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    config.viewer.quit_on_train_completion = True
    model = config.pipeline.model
    if method.startswith("raygauss"):
        model.num_random, model.step_size, model.training_window = 300, 0.02, 16
        model.num_downscales = 0
    else:
        model.log2_hashmap_size, model.num_levels, model.grid_resolution = 10, 4, 32
        model.grid_cells_per_update = 512
        config.pipeline.target_num_samples = 1024
    for name, value in changes.items():
        *path, leaf = name.split("__")
        place = config
        for step in path:
            place = place[step] if isinstance(place, dict) else getattr(place, step)
        setattr(place, leaf, value)
    return config


def train(config: Any) -> None:
    """Train, as `ns-train` does."""
    from nerfstudio.scripts.train import main

    main(config)


def evaluate(config: Path, output: Path) -> None:
    """Evaluate, as `ns-eval` does."""
    from nerfstudio.scripts.eval import ComputePSNR

    ComputePSNR(load_config=config, output_path=output).main()
    print("PSNR", json.loads(output.read_text())["results"]["psnr"])


def run_folder(output: Path, method: str) -> Path:
    """The folder of a run of `config_of`."""
    return output / "trial" / method / "now"


def models_folder(output: Path, method: str) -> Path:
    """The folder of its checkpoints."""
    return run_folder(output, method) / "nerfstudio_models"


def state_of(path: Path) -> dict[str, Any] | None:
    """A checkpoint's contents; None if it can't be read."""
    from ns_support.runs.saved_runs import is_whole

    if not path.is_file() or not is_whole(path):
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return None


def difference(a: dict[str, Any] | None, b: dict[str, Any] | None) -> float:
    """The largest difference of the models' tensors; 0: bit for bit the same, infinite: of other shapes."""
    if a is None or b is None or a["pipeline"].keys() != b["pipeline"].keys():
        return float("inf")
    largest = 0.0
    for name, x in a["pipeline"].items():
        y = b["pipeline"][name]
        if x.shape != y.shape:
            return float("inf")
        if not torch.equal(x, y):
            largest = max(largest, float((x.double() - y.double()).abs().max()), 1e-300)
    return largest
