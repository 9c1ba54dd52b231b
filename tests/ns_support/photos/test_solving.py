"""The process that calls pycolmap: its progress, its end, and what is said when it fails. A stand-in is started."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from ns_support.errors import UserError
from ns_support.photos import solving
from ns_support.photos.solving import solve
from ns_support.photos.worker import Job
from ns_support.runs.stopping import terminable

MODELS = [{"folder": "0", "names": ["a.jpg"], "points": 7, "error": 0.5}]


@pytest.fixture
def job(tmp_path):
    return Job(str(tmp_path), [], ["a.jpg", "b.jpg"], "OPENCV", False, False, 1600, 4096, 1)


@pytest.fixture
def stand_in(monkeypatch):
    """`stand_in(code)`: what runs in place of the worker."""

    def use(code):
        monkeypatch.setattr(solving, "COMMAND", (sys.executable, "-c", "import json, os, sys, time\n" + code))

    return use


def message(**entries):
    return f"print({json.dumps(entries)!r}, flush=True)\n"


def lives(process):
    """Whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_models_come_back_and_the_job_is_described(job, stand_in, tmp_path):
    stand_in(
        "job = json.load(open(sys.argv[1]))\nassert job['names'] == ['a.jpg', 'b.jpg']\n"
        "print('COLMAP speaks', file=sys.stderr)\n"
        + message(step="features", total=2)
        + message(step="poses", total=2)
        + message(done=2)
        + message(models=MODELS)
    )
    (model,) = solve(job)
    assert (model.names, model.points, model.error) == (["a.jpg"], 7, 0.5)
    assert model.folder == tmp_path / "models/0"
    assert (tmp_path / solving.LOG).read_text() == "COLMAP speaks\n"


def test_the_log_does_not_reach_the_user(job, stand_in, capfd):
    stand_in("print('I2026 speaks', file=sys.stderr)\n" + message(models=[]))
    assert solve(job) == []
    out, err = capfd.readouterr()
    assert "speaks" not in out + err


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("os.abort()", "could not find the poses: it crashed. Its log is .*colmap.log"),
        ("os.kill(os.getpid(), 9)", "it was killed, as happens when memory runs out"),
        ("raise RuntimeError('database is locked')", "RuntimeError: database is locked"),
        ("import pycolmap_that_is_not_there as pycolmap", "No module named"),
        ("raise ModuleNotFoundError(\"No module named 'pycolmap'\")", "need a package: `pip install pycolmap`"),
        ("pass", "exit code 0"),
    ],
)
def test_a_failure_becomes_a_sentence(job, stand_in, code, sentence):
    stand_in(message(step="features", total=2) + code)
    with pytest.raises(UserError, match=sentence):
        solve(job)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_at_once(job, stand_in, tmp_path, number):
    stand_in(f"open({str(tmp_path / 'begun')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")

    def interrupt():
        while not (tmp_path / "begun").exists() or not (tmp_path / "begun").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), terminable():
        solve(job)
    assert time.monotonic() - start < 60
    assert not lives(int((tmp_path / "begun").read_text()))
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_worker_ends_with_its_parent(tmp_path):
    """Its standard input is closed by that, even if the parent is killed."""
    import subprocess

    code = (
        "import threading, time\nfrom ns_support.photos.worker import _end_with_parent\n"
        "threading.Thread(target=_end_with_parent, daemon=True).start()\ntime.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(60) == 1
