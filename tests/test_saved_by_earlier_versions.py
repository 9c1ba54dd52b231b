"""A run of each method in tests/data, written once: every later version loads, renders and resumes it alike.

Floating-point sums depend a little on the processor and on the versions of PyTorch and Numba, so that the figures agree
to a tolerance and not to the bit. Figures of a resumed instant-ngp-hardmine are of the first version whose random
numbers follow from the step: they were written anew then, 0.01 dB from those before.
"""

import json
import shutil
from pathlib import Path

import pytest
from data.write_runs import CONFIGS, loaded, resumed

DATA = Path(__file__).parent / "data"


@pytest.fixture
def run(method, tmp_path, monkeypatch):
    """The folder of a saved run, in a copy whose paths are the configuration's relative ones."""
    shutil.copytree(DATA / "scene", tmp_path / "scene")
    shutil.copytree(DATA / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs") / "disc" / method / "saved"


def assert_alike(figures, expected, tolerance):
    assert figures["step"] == expected["step"]
    assert figures["psnr"] == pytest.approx(expected["psnr"], abs=30 * tolerance)  # decibels
    for name in ("ssim", "rgb", "depth"):
        flat = [x for row in figures[name] for x in row] if name == "rgb" else figures[name]
        wanted = [x for row in expected[name] for x in row] if name == "rgb" else expected[name]
        assert flat == pytest.approx(wanted, abs=tolerance, rel=tolerance), name


@pytest.mark.parametrize("method", CONFIGS)
def test_a_saved_run_loads_and_renders_as_when_it_was_saved(run):
    expected = json.loads((run / "figures.json").read_text())
    assert_alike(loaded(run), expected["loaded"], 1e-4)


OTHERS = CONFIGS.keys() - {"raygauss", "instant-ngp-hardmine"}
"""What they train with, these two do as well."""


@pytest.mark.parametrize(
    "method",
    ["raygauss", "instant-ngp-hardmine", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(OTHERS))],
)
def test_a_saved_run_resumes_as_when_it_was_saved(run):
    expected = json.loads((run / "figures.json").read_text())
    assert_alike(resumed(run), expected["resumed"], 2e-3)


def test_every_method_has_a_saved_run():
    assert {folder.name for folder in (DATA / "runs" / "disc").iterdir()} == set(CONFIGS)
