"""Runs what is marked `interpreted`, in one process whose Triton interprets kernels on the CPU."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("triton")

TESTS = Path(__file__).parent
MARK = "pytest.mark." + "interpreted"  # not in one piece: this file has no such test
FILES = sorted(str(path) for path in TESTS.rglob("test_*.py") if MARK in path.read_text())


def start(marker):
    """By name, so that the process does not load what other tests need: nerfstudio above all."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--durations=10", "-m", f"interpreted and {marker}", *FILES]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - unlike a pipe, never full; closed with the session
    return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT), output


def finish(process, output):
    code = process.wait()
    output.seek(0)
    said = output.read()
    print(said[-3000:])
    assert code == 0, said[-4000:]
    assert " passed" in said


def start_early(session):
    """Called by conftest.py: the interpreter takes one core for a minute, while other tests run on another."""
    session.config.interpreter = process, _ = start("not slow")
    session.config.add_cleanup(process.kill)


def test_in_the_interpreter(pytestconfig):
    finish(*getattr(pytestconfig, "interpreter", None) or start("not slow"))


@pytest.mark.slow
def test_in_the_interpreter_at_length():
    finish(*start("slow"))


def test_the_interpreters_process_does_without_nerfstudio():
    program = "import sys, pytest; pytest.main(sys.argv[1:]); sys.exit('nerfstudio' in sys.modules)"
    command = [sys.executable, "-c", program, "--collect-only", "-q", *FILES]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
