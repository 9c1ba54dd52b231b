"""The kernels' builds with an older Triton and with the newest, each put in front of the one that is installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

TESTS = Path(__file__).parent
FOLDERS = ("raygauss_ns", "hardmine_ns", "ns_support/adam")


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["triton==3.6.0", "triton"])
def test_builds(wanted, tmp_path):
    """As `-k builds` does with the installed one, with the same limits for registers and spilled bytes."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), wanted]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{wanted} can't be installed: {done.stderr[-300:]}")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    asked = [sys.executable, "-c", "import triton; print(triton.__file__, triton.__version__)"]
    found = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout
    print(found)
    assert str(tmp_path) in found
    assert wanted == "triton" or found.split()[-1] == wanted.removeprefix("triton==")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-k", "builds", "-m", "not slow"]
    done = subprocess.run(
        [*command, *(str(TESTS / folder) for folder in FOLDERS)],
        env=environment, cwd=TESTS.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40
