"""Quality against processor seconds, at a size of a few seconds."""

import json
import sys

import pytest


@pytest.fixture
def run(script, scene, tmp_path, monkeypatch):
    """Runs the script with these words; the file of its points."""
    module, output = script("time_to_quality"), tmp_path / "points" / "disc.json"

    def act(*words):
        options = [f"--option={name}" for name in ("num_random=100", "step_size=0.05")]
        command = ["run", "raygauss", str(scene), "--parser", "blender-data", "--output", str(output), *options]
        monkeypatch.setattr(sys, "argv", ["time_to_quality.py", *command, *words])
        module.main()
        return json.loads(output.read_text())

    act.show = lambda *words: (monkeypatch.setattr(sys, "argv", ["x", "show", str(output), *words]), module.main())
    return act


def test_points_are_written_and_a_run_is_taken_up_where_it_was_broken_off(run, monkeypatch, tmp_path, capsys):
    # Every step is due: after each, the next point of the plan has passed.
    first = run("--steps", "4", "--at", "0.001", "--seconds", "0.01")
    assert [(point["step"], point["last"]) for point in first["points"]] == [(1, True)]
    # As if the process had died after that point.
    first["points"][0]["last"] = False
    (tmp_path / "points" / "disc.json").write_text(json.dumps(first))
    second = run("--steps", "4", "--at", "0.001")
    assert [point["step"] for point in second["points"]] == [1, 4]
    assert second["points"][1]["seconds"] > second["points"][0]["seconds"] > 0
    assert second["points"][1]["peak_mb"] > 0
    assert {"psnr", "ssim"} <= second["points"][1].keys()
    assert run("--steps", "4", "--at", "0.001") == second  # nothing is left to do
    with pytest.raises(SystemExit, match="is of another run"):
        run("--steps", "5", "--at", "0.001")
    capsys.readouterr()
    run.show("--plot", str(tmp_path / "plot.png"))
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert (tmp_path / "plot.png").stat().st_size > 1000
