"""A long training with a viewer that comes and goes, and many evaluations in one process: memory, files, threads."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trials.children import finish, start
from trials.runs import METHODS, config_of, evaluate, run_folder, train

_EVERY = 0.25
"""Time between two looks at a process (s)."""
_PLACES = (0.1, 0.2, 0.4, 0.6, 0.8, 0.99)
"""Fractions of the duration that are shown."""


class Look(NamedTuple):
    """What a process takes: resident memory (MiB), open files, threads."""

    mebibytes: float
    files: int
    threads: int


def _look(child: int) -> Look | None:
    try:
        lines = Path(f"/proc/{child}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        files = len(os.listdir(f"/proc/{child}/fd"))
        return Look(int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"]))
    except (OSError, KeyError):
        return None


def _visit(port: int, number: int) -> None:
    """A client of the viewer: connects, asks for the page or a websocket, and leaves."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as client:
            upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            client.sendall((head + (upgrade + key if number % 2 else "") + "\r\n").encode())
            client.settimeout(0.5)
            if number % 4 < 2:
                client.recv(1 << 16)
    except OSError:  # it has not begun to listen, or has stopped
        time.sleep(_EVERY)


def _followed(work: Callable[[], Any], log: Path, port: int | None) -> tuple[list[Look], str, int]:
    """Looks at a child until it ends; how it ended; the number of clients that came."""
    looks, visits, begun = [], 0, time.monotonic()
    child = start(work, log)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        seen = _look(child)
        if seen is not None:
            looks.append(seen)
        if port is not None:
            _visit(port, visits)
            visits += 1
        time.sleep(_EVERY)
    return looks, finish(child, log, 10.0, begun).kind, visits


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def endurance(data: Path, work: Path, count: int) -> Iterator[dict[str, Any]]:
    """A training of each method with a viewer, then evaluations of the run.

    Args:
        data: a Blender scene.
        work: folder for the runs.
        count: steps; there is an evaluation for every 30 of them.

    Yields:
        For each, the memory at some places, and the largest numbers of files and threads in the first and last half.
    """
    for method in METHODS:
        port = _free_port()
        config = config_of(method, data, work, count, vis="viewer", viewer__websocket_port=port, steps_per_save=100)
        path, number = run_folder(work, method) / "config.yml", max(count // 30, 2)

        def evaluations(path: Path = path, number: int = number) -> None:
            for _ in range(number):
                evaluate(path, work / "eval.json")

        works = {
            f"{count} steps, a viewer that comes and goes": (lambda config=config: train(config), port),
            f"{number} evaluations": (evaluations, None),
        }
        for name, (job, where) in works.items():
            looks, kind, visits = _followed(job, work / "endurance.log", where)
            memory = [f"{looks[int(len(looks) * place)].mebibytes:.0f}" for place in _PLACES]
            middle = len(looks) // 2
            files = [max(look.files for look in half) for half in (looks[:middle], looks[middle:])]
            threads = [max(look.threads for look in half) for half in (looks[:middle], looks[middle:])]
            row = {"method": method, "work": name, "end": kind, "clients": visits, "MiB": " ".join(memory)}
            yield row | {"files": " ".join(map(str, files)), "threads": " ".join(map(str, threads))}
