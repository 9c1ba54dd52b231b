"""Runs pycolmap in a process of its own: with progress, an end at once on a signal, and a sentence if it crashes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ns_support.errors import UserError
from ns_support.photos.worker import Job
from ns_support.runs.progress import StepProgress

COMMAND = (sys.executable, "-m", "ns_support.photos.worker")
"""What is started, with the description of the job as its argument."""
LOG = "colmap.log"
"""COLMAP's own log, in the work folder."""
_ROOT = Path(__file__).resolve().parents[2]
_INTERVAL = 0.25
"""How often progress is looked up (s)."""
_TITLES = {"features": "Features", "matches": "Matches", "poses": "Poses"}
_COUNTED = {"features": "descriptors", "matches": "two_view_geometries"}
"""The tables of COLMAP's database whose rows show the progress of a step."""
_KILLED = {getattr(signal, "SIGKILL", 9): "it was killed, as happens when memory runs out"}


class Model:
    """One of COLMAP's models.

    Attributes:
        folder: of its files.
        names: of the registered photographs.
        points: number of points.
        error: mean reprojection error (pixels).
    """

    def __init__(self, folder: Path, names: list[str], points: int, error: float) -> None:
        self.folder, self.names, self.points, self.error = folder, names, points, error


def solve(job: Job) -> list[Model]:
    """Features, matches and poses of prepared photographs.

    Args:
        job: what to do. What an interrupted run has left in the folder's database is used.

    Returns:
        COLMAP's models, the one of most photographs first; perhaps none.

    Raises:
        UserError: pycolmap is missing, failed or was killed.
    """
    folder = Path(job.folder)
    description = folder / "job.json"
    description.write_text(json.dumps(asdict(job)), "utf8")
    models: list[Model] | None = None
    with (folder / LOG).open("wb") as log, _worker(description, log) as process, StepProgress() as progress:
        step, seen = "", 0
        for message in _messages(process):
            if message is None:
                if step in _COUNTED:
                    progress.follow(_rows(folder / "database.db", _COUNTED[step]))
                continue
            if "step" in message:
                step, seen = message["step"], 0
                progress.begin(_TITLES[step], message["total"])
            elif "done" in message:
                seen = max(seen, message["done"])
                progress.follow(seen)
            elif "models" in message:
                models = [Model(folder / "models" / entry.pop("folder"), **entry) for entry in message["models"]]
        code = process.wait()
    if code != 0 or models is None:
        raise UserError(_failure(code, folder / LOG))
    return models


@contextlib.contextmanager
def _worker(description: Path, log: Any) -> Iterator[subprocess.Popen[bytes]]:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Its own session: Ctrl+C in a terminal reaches this process alone, which then ends the other.
    process = subprocess.Popen(
        [*COMMAND, str(description)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": _threads(description)},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _threads(description: Path) -> str:
    return str(json.loads(description.read_text("utf8"))["threads"])


def _messages(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    """The messages of the worker as they come, and None whenever there has been none for a moment."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed when the worker is ended
            for line in process.stdout:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=_INTERVAL)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield json.loads(line)


def _rows(database: Path, table: str) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=0.1)) as connection:
            return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    except sqlite3.Error:  # being written
        return 0


def _failure(code: int, log: Path) -> str:
    lines = [line for line in log.read_text("utf8", "replace").splitlines() if line.strip()]
    if any("No module named 'pycolmap'" in line for line in lines):
        return "Poses of photographs need a package: `pip install pycolmap`. Or find them with COLMAP itself."
    reason = _KILLED.get(-code, "it crashed" if code < 0 else lines[-1].strip() if lines else f"exit code {code}")
    remedy = "The same command goes on from there; fewer features (photos.max-features) need less memory."
    return f"COLMAP could not find the poses: {reason}. Its log is {log}. {remedy}"
