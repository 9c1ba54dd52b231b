"""nerfstudio's commands as a user types them, and a scene of a few pixels for them."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

MAKE_SCENE = Path(__file__).resolve().parents[2] / "examples" / "make_scene.py"


def _run(*words, cwd, code=0):
    executable = shutil.which(words[0], path=sysconfig.get_path("scripts"))
    assert executable, f"{words[0]} is not installed"
    done = subprocess.run(
        [executable, *map(str, words[1:])],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"COLUMNS": "200"},
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == (code == 0), output[-4000:]
    return output


@pytest.fixture(scope="session")
def run():
    """`run("ns-train", ..., cwd=folder, code=0)`: what the command says; `code` other than 0 if it is to fail."""
    return _run


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """That of examples/make_scene.py, 32 x 32 pixels a view."""
    folder = tmp_path_factory.mktemp("scene")
    options = {"output": folder, "resolution": 32, "train": 6, "val": 2, "test": 2, "samples": 1}
    words = [str(w) for name, value in options.items() for w in (f"--{name}", value)]
    subprocess.run([sys.executable, str(MAKE_SCENE), *words], check=True, capture_output=True)
    return folder
