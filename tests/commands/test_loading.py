"""Finished runs through the function by which all of nerfstudio's commands load them."""

import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image
from small_runs import METHODS, begin, both, configure, said
from small_scenes import write_disc

from ns_support.commands.loading import prepare_loading
from ns_support.errors import UserError
from ns_support.runs.saved_runs import read_checkpoint
from ns_support.trainer import SharedTrainerConfig


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_disc(tmp_path_factory.mktemp("scene") / "disc")


@pytest.fixture(scope="module")
def finished(scene, tmp_path_factory):
    """A finished run of each method with two checkpoints: its folder."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"save_only_latest_checkpoint": False, "steps_per_save": 2, "timestamp": "run"}
    return {name: begin(configure(name, scene, folder, 4, **options)).base_dir for name in METHODS}


@pytest.fixture
def run(finished, tmp_path):
    """`run(method)`: a copy of a finished run, whose config.yml it gives."""

    def copied(method):
        shutil.copytree(finished[method].parents[1], tmp_path / "test")
        path = tmp_path / "test" / method / "run" / "config.yml"
        config = yaml.load(path.read_text(), Loader=yaml.Loader)
        config.output_dir = tmp_path
        path.write_text(yaml.dump(config))
        return path

    return copied


def checkpoint(config, step=3):
    return config.parent / "nerfstudio_models" / f"step-{step:09d}.ckpt"


@both
def test_the_newest_checkpoint_is_loaded(method, run, capsys):
    config = run(method)
    _, _, path, step = eval_setup(config)
    assert (path.name, step) == ("step-000000003.ckpt", 3)


@both
def test_a_damaged_newest_checkpoint_leaves_the_one_before(method, run, capsys):
    config = run(method)
    checkpoint(config).write_bytes(checkpoint(config).read_bytes()[:-1000])
    _, _, path, step = eval_setup(config)
    assert (path.name, step) == ("step-000000002.ckpt", 2)
    assert "step-000000003.ckpt is damaged" in said(capsys)


@both
def test_a_checkpoint_of_another_method_is_refused(method, run, finished):
    other = next(name for name in ("raygauss", "instant-ngp-hardmine") if name != method)
    config = run(method)
    shutil.copy(checkpoint(finished[other] / "config.yml"), checkpoint(config))
    with pytest.raises(UserError, match=f"is a checkpoint of {other}, and the run's configuration is one of {method}"):
        eval_setup(config)


@both
def test_a_checkpoint_that_lacks_something_is_refused(method, run):
    config = run(method)
    state = read_checkpoint(checkpoint(config))
    largest = max(state["pipeline"], key=lambda name: state["pipeline"][name].numel())
    del state["pipeline"][largest]
    torch.save(state, checkpoint(config))
    with pytest.raises(UserError, match=r"step-\d+\.ckpt: .*does not fit this configuration"):
        eval_setup(config)


@both
@pytest.mark.parametrize("part", ["exp_avg", "exp_avg_sq"])
def test_optimisers_of_another_shape_are_refused(method, part, finished, scene, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[method], folder)
    path = folder / "nerfstudio_models" / "step-000000003.ckpt"
    state = read_checkpoint(path)
    group = "means" if method == "raygauss" else "fields"
    moments = next(iter(state["optimizers"][group]["state"].values()))
    moments[part] = moments[part][:-1].clone()
    torch.save(state, path)
    with pytest.raises(UserError, match=rf"step-000000003\.ckpt: The optimiser of {group} has {part} of the shape"):
        begin(configure(method, scene, tmp_path, 1, load_dir=folder))


@both
def test_a_run_with_an_image_of_another_size_is_evaluated(method, tmp_path):
    folder = write_disc(tmp_path / "disc")
    path = sorted(folder.glob("*.png"))[0]
    with Image.open(path) as image:
        half = image.resize((image.width // 2, image.height // 2))
    half.save(path)
    trainer = begin(configure(method, folder, tmp_path, 2, timestamp="run"))
    pipeline = eval_setup(trainer.base_dir / "config.yml")[1]
    assert pipeline.get_average_eval_image_metrics()["psnr"] > 0


def test_a_run_without_checkpoints_is_a_sentence(run):
    config = run("raygauss")
    shutil.rmtree(config.parent / "nerfstudio_models")
    with pytest.raises(UserError, match=r"There is no folder .*nerfstudio_models"):
        eval_setup(config)


@both
def test_scores_are_said(method, run, tmp_path, capsys):
    ComputePSNR(load_config=run(method), output_path=tmp_path / "eval.json").main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert f"{results['psnr']:.2f} dB PSNR, {results['ssim']:.3f} SSIM, the mean over 1 images." in said(capsys)


def test_runs_of_other_methods_are_loaded_as_ever(monkeypatch):
    module = ModuleType("nerfstudio.utils.eval_utils")
    module.eval_load_checkpoint = lambda config, pipeline: ("theirs", config, pipeline)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    prepare_loading()
    prepare_loading()
    other = SimpleNamespace()
    assert module.eval_load_checkpoint(other, "pipeline") == ("theirs", other, "pipeline")


@pytest.mark.parametrize(
    ("config", "words", "host"),
    [
        (SharedTrainerConfig, [], "127.0.0.1"),
        (SharedTrainerConfig, ["--viewer.websocket-host", "0.0.0.0"], "0.0.0.0"),
        (SharedTrainerConfig, ["--viewer.websocket_host=0.0.0.0"], "0.0.0.0"),
        (SimpleNamespace, [], "0.0.0.0"),
    ],
)
def test_ns_viewer_listens_on_this_machine_unless_told_otherwise(config, words, host, monkeypatch):
    shown = []
    module = ModuleType("nerfstudio.scripts.viewer.run_viewer")
    module._start_viewer = lambda config, pipeline, step: shown.append((config.viewer.websocket_host, pipeline, step))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "argv", ["ns-viewer", *words])
    prepare_loading()
    made = config()
    made.viewer = SimpleNamespace(websocket_host="0.0.0.0")
    module._start_viewer(made, "pipeline", 7)
    assert shown == [(host, "pipeline", 7)]
