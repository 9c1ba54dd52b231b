"""benchmarks/reliability.py: what it tells apart, and small counts of each of its trials."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(BENCHMARKS))
    import reliability
    from trials import children, fuzz, harm, kills


def fails():
    raise ValueError("broken")


def compute():
    while True:
        random.random()


def refuses():
    sys.exit("The file is broken.")


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (lambda: print("done"), "ok"),
        (fails, "traceback"),
        (refuses, "sentence"),
        (lambda: sys.exit(3), "silent"),
        (lambda: time.sleep(60), "hang"),
        (compute, "hang"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal"),
        (lambda: bytearray(3 << 30), "traceback"),
    ],
)
def test_ends_are_told_apart(work, kind, tmp_path):
    outcome = children.run(
        work,
        tmp_path / "log",
        limit=0.5 if kind == "hang" else 30.0,
        memory=8 << 30 if kind != "traceback" else 6 << 29,
    )
    assert outcome.kind == kind, outcome.text
    assert not outcome.is_ours


def test_a_traceback_of_ours_is_known():
    outcome = children.Outcome("traceback", 1, 0.1, 1.0, 'File "/x/ns_support/data/ply.py", line 1, in read_ply')
    assert outcome.is_ours


@pytest.mark.parametrize("name", [*harm.BYTES, *harm.TEXT, "entry"])
def test_harm_changes_a_file_and_is_repeatable(name):
    change = {**harm.BYTES, **harm.TEXT, "entry": harm.entry}[name]
    content = json.dumps({"w": 40, "frames": [{"file_path": f"{i}.png", "k": [0.5, 1.5]} for i in range(9)]}).encode()
    damaged = [change(content, random.Random(seed)) for seed in range(20)]
    assert damaged == [change(content, random.Random(seed)) for seed in range(20)]
    assert sum(each != content for each in damaged) >= 18  # a number may be exchanged for itself


def test_readers_withstand_made_up_files(tmp_path, monkeypatch):
    rows = list(fuzz.fuzz(tmp_path, 120, seed=0))
    assert {row["kind"] for row in rows} == {"ok", "sentence"}
    # A reader that does not check what it reads would be found.
    monkeypatch.setattr("ns_support.data.ply.read_ply", lambda path: path.read_text("ascii").index("end_header"))
    monkeypatch.setattr("ns_support.data.points.read_points", lambda path: path.read_text("ascii").index("end_header"))
    (tmp_path / "again").mkdir()
    assert any("traceback" in row["kind"] for row in fuzz.fuzz(tmp_path / "again", 20, seed=0))


def test_tables_count_every_row():
    rows = [{"group": "a", "kind": "ok"}, {"group": "b", "kind": "hang"}, {"group": "a", "kind": "ok"}]
    assert reliability.tally(rows, "group", "kind") == [
        {"group": "a", "hang": 0, "ok": 2},
        {"group": "b", "hang": 1, "ok": 0},
    ]
    whole = {"checkpoints": 2, "broken": 0, "evaluates": "ok", "resumes": "ok", "equal": True}
    lost = {"checkpoints": 1, "broken": 1, "evaluates": "traceback", "resumes": "", "equal": ""}
    case = {"method": kills.METHODS[0], "moment": "save"}
    first = kills.summary([case | whole, case | lost])[0]
    assert (first["kills"], first["broken checkpoints"], first["evaluate"]) == (2, 1, "1 of 2")
    assert (first["resume"], first["bit for bit"]) == ("1 of 1", "1 of 1")


def test_rows_of_a_trial_that_is_interrupted_are_kept(tmp_path):
    def rows():
        for i in range(3):
            yield {"group": "a", "kind": "ok", "n": i}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reliability.kept(rows(), "damage", tmp_path / "rows.json", {"trial": "damage"})
    found = json.loads((tmp_path / "rows.json").read_text())
    assert (found["reached"], [row["n"] for row in found["rows"]]) == (3, [0, 1, 2])
    assert found["table"] == [{"group": "a", "ok": 3}]
    assert os.listdir(tmp_path) == ["rows.json"]


@pytest.fixture
def trial(tmp_path):
    """`trial(name, count)`: the rows of a trial with a small count, in a command of its own, since it forks."""
    import subprocess

    def run(name, count, *words):
        out = tmp_path / "rows.json"
        command = [sys.executable, BENCHMARKS / "reliability.py", name, "--count", count, "--json", out, *words]
        path = os.pathsep.join([str(BENCHMARKS.parent), *sys.path])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(out.read_text())["rows"]

    return run


@pytest.mark.slow
def test_kills_lose_nothing(trial):
    rows = trial("kills", 3)
    assert [row["broken"] for row in rows] == [0] * len(rows)
    for row in rows:
        if row["checkpoints"]:
            assert row["evaluates"] == "ok"
            assert row["resumes"] in ("", "ok")
            assert row["left over"] <= (row["signal"] == "SIGKILL" and not row["resumes"])
        if row["resumes"]:
            assert row["equal"]


@pytest.mark.slow
def test_damaged_files_end_in_sentences(trial):
    rows = trial("damage", 1)
    assert {row["kind"] for row in rows} <= {"ok", "sentence"}, [row for row in rows if "text" in row]
    assert any(row["kind"] == "sentence" for row in rows)
    assert max(row["MiB"] for row in rows) < 4000


@pytest.mark.slow
def test_memory_files_and_threads_are_level(trial):
    for row in trial("endurance", 30):
        assert row["end"] == "ok"
        first, last = map(int, row["files"].split())
        assert last <= first + 3
        first, last = map(int, row["threads"].split())
        assert last <= first + 3
