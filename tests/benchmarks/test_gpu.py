"""The benchmark for GPUs at a small size on the CPU: so that it works the first time a GPU is at hand."""

import json
import math

import numpy as np
import pytest
import torch
from small_scenes import write_blender


@pytest.fixture(scope="module")
def benchmark(script):
    return script("gpu")


@pytest.fixture
def blender_scene(tmp_path):
    """A grey disc before a transparent background, seen from two sides."""
    y, x = np.mgrid[:24, :24]
    image = np.zeros((24, 24, 4), np.uint8)
    image[(x - 12) ** 2 + (y - 12) ** 2 < 60] = [90, 90, 90, 255]
    poses = [np.diag([sign, 1.0, sign, 1.0]) for sign in (1.0, -1.0)]
    for pose in poses:
        pose[2, 3] = 4 * pose[2, 2]
    views = [(name, image, pose) for name, pose in zip("ab", poses, strict=True)]
    return write_blender(tmp_path, 0.69, train=views, test=views)


@pytest.mark.slow
def test_smoke_everything_at_a_small_size(benchmark, blender_scene, tmp_path, capsys):
    pytest.importorskip("gsplat")
    path = tmp_path / "out" / "gpu.json"
    arguments = ["--device", "cpu", "--small", "--train", str(blender_scene), "--json", str(path)]
    results = benchmark.main(arguments)
    assert json.loads(path.read_text())["training"]["steps"] == 4
    kinds = [row["kind"] for row in results["cast"]]
    assert kinds == ["image", "image, shuffled", "random"]
    for row in results["cast"]:
        assert row["forward_ms"] > 0
        assert 0.05 < row["opacity"] < 1
    assert math.isfinite(results["training"]["psnr"])
    assert results["training"]["gaussians"] >= 500
    assert "dB on the test split" in capsys.readouterr().out


def test_training_learns(benchmark, blender_scene):
    pytest.importorskip("gsplat")
    import gpu_train

    options = benchmark.parse_options(["--device", "cpu", "--small", "--train", str(blender_scene), "--steps", "20"])
    torch.manual_seed(0)
    trainer = gpu_train.Trainer(options, gpu_train.load_views(blender_scene, "train", "cpu"))
    before = gpu_train.evaluate(trainer, trainer.views)
    for step in range(20):
        trainer.step(step)
    assert gpu_train.evaluate(trainer, trainer.views) > before + 1


def test_no_gpu_is_said(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.parse_options([])
    assert "--device cpu --small" in capsys.readouterr().err
