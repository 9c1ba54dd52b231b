"""`ns-train --machine.num-devices 2` as a user types it, on a machine without CUDA."""

import json

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="asks for processes on the CPU, where that is the default"),
]
SETTINGS = {
    "raygauss": ("--pipeline.model.num-random", 300, "--pipeline.model.step-size", 0.02),
    "instant-ngp-hardmine-bounded": ("--pipeline.target-num-samples", 1024, "--pipeline.model.log2-hashmap-size", 12),
}


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_smoke_two_processes_train_and_the_run_evaluates(method, scene, tmp_path, run):
    words = ("--machine.num-devices", 2, "--max-num-iterations", 6, "--vis", "tensorboard", "--timestamp", "now")
    output = run("ns-train", method, *words, *SETTINGS[method], "--data", scene, cwd=tmp_path)
    assert output.count("Training Finished") == 1
    config = next(tmp_path.rglob("config.yml"))
    run("ns-eval", "--load-config", config, "--output-path", "eval.json", cwd=tmp_path)
    assert json.loads((tmp_path / "eval.json").read_text())["results"]["psnr"] > 3


def test_bad_input_ends_in_one_sentence(tmp_path, run):
    words = ("--machine.num-devices", 2, "--vis", "tensorboard", "--data", tmp_path / "nowhere", "blender-data")
    output = run("ns-train", "raygauss", *words, cwd=tmp_path, code=1)
    assert "does not exist" in output.replace("\n", " ")
    assert "Traceback" not in output
