"""Every benchmark can be imported, and answers `--help`."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text())


def test_there_are_scripts():
    assert {"ablation.py", "casting.py", "gpu.py", "train_eval.py"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help(path, script, capsys, monkeypatch):
    if path.stem == "gpu_static":
        pytest.importorskip("triton")
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "usage:" in out
    assert path.name in out
    assert "Traceback" not in out
