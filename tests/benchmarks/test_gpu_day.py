"""The kit for a day with a GPU, each step at a tiny size on a CPU: so that it works the first time."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

CHECKPOINT = Path(__file__).parents[1] / "data/runs/disc/raygauss/saved/nerfstudio_models/step-000000005.ckpt"


@pytest.fixture
def do(script, scene, tmp_path):
    """Does a step; its rows, as they are on disk."""

    def do(step, *arguments):
        kit = script("gpu_day")
        options = ["--device", "cpu", "--small", "--data", str(scene), "--output", str(tmp_path)]
        journal = kit.main([step, *options, *arguments])
        written = json.loads((tmp_path / f"{step}.json").read_text())["rows"]
        assert [list(row) for row in written] == [list(row) for row in journal.rows]
        return journal.rows

    return do


def test_kernels_on_a_shell_and_on_a_trained_scene(do, tmp_path):
    (row,) = do("geometry", "--checkpoint", str(CHECKPOINT))
    with np.load(tmp_path / "geometry.npz") as file:
        assert row["gaussians"] == len(file["means"]) == len(file["colors"]) > 100
        assert (file["scales"] > 0).all()
    rows = do("kernels")
    assert [row.get("scene") for row in rows] == [None, None, "shell of 500", "shell of 500", "trained", "trained"]
    assert [row.get("slab") for row in rows] == [None, None, 8, 4, 8, 4]
    assert all(row.get("forward_ms", row.get("rounds_ms")) > 0 for row in rows)
    assert rows[1]["visible"] > rows[1]["rays"]
    assert rows[2]["opacity"] > 0.05


def test_parts_of_a_step(do):
    rows = do("parts")
    assert [row["method"] for row in rows] == ["raygauss", "instant-ngp-hardmine-bounded"]
    for row in rows:
        assert row["steps_per_second"] > 0
        parts = row["forward"] + row["backward"] + row["optimisers"] + row["callbacks"]
        assert 0 < parts <= 1.01 * row["whole, host"]


@pytest.mark.slow
def test_mining_against_off(do, tmp_path):
    (row,) = do("mining")
    assert row["status"] == 0, row["said"]
    runs = json.loads((tmp_path / row["file"]).read_text())["runs"]
    assert [run["variant"] for run in runs] == ["baseline", "points"]


@pytest.mark.slow
def test_training_evaluation_and_frame_rate(do, tmp_path):
    train, evaluation, geometry = do("train")
    assert (train["status"], train["steps"]) == (0, 4)
    assert evaluation["status"] == 0, evaluation["said"]
    assert "psnr" in json.loads((tmp_path / "scores.json").read_text())["results"]
    assert geometry["gaussians"] > 0
    (view,) = do("viewer")
    assert view["pixels"] == 24 * 24
    assert view["images_per_second"] > 0


def test_each_file_of_tests_has_a_row(script, monkeypatch, tmp_path):
    kit = script("gpu_day")
    asked = []
    monkeypatch.setattr(kit.Journal, "run", lambda self, command: asked.append(command) or (0, 1.0, "x\n3 passed"))
    journal = kit.main(["tests", "--device", "cpu", "--output", str(tmp_path)])
    files = sorted(path.name for path in (Path(__file__).parents[1] / "gpu").glob("test_*.py"))
    assert sorted(row["file"] for row in journal.rows) == files
    assert all(Path(command[-1]).is_file() for command in asked)
    assert journal.rows[0]["said"] == "3 passed"


def test_what_ends_early_loses_nothing(script, tmp_path):
    Journal = script("common.journal").Journal
    journal = Journal(tmp_path / "deep" / "x.json", 100, {"step": "x"})
    journal.add(a=1)
    record = json.loads(journal.path.read_text())
    assert (record["rows"], record["about"], record["budget_seconds"]) == ([{"a": 1}], {"step": "x"}, 100)
    status, _, said = journal.run(["python", "-c", "print('one'); raise SystemExit(3)"])
    assert (status, said) == (3, "one")
    begin = time.monotonic()
    status, _, said = journal.run(["python", "-c", "print('two', flush=True); import time; time.sleep(60)"], keep=94)
    assert (status, said) == (124, "two")
    assert time.monotonic() - begin < 30
