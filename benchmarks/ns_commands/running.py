"""Run a command in a new process, or in a fork of this one, with a time limit."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from common.system import command_path

from ns_commands.calls import PORT, Case

PROGRAMS = ("ns-train", "ns-eval", "ns-render", "ns-export", "ns-viewer", "raygauss-export", "raygauss-render")
"""Programs that the commands start."""
VIEWER_SECONDS = 3.0
"""How long a viewer runs before it is stopped."""


class Forked:
    """A command in a fork of this process, with the part of `subprocess.Popen`'s interface that is used here."""

    def __init__(self, words: list[str], folder: Path, output: int) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(folder)
            code = 1
            try:
                sys.argv = words
                _entry_point(words[0])()
                code = 0
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        """The exit code, or None if the process is still running."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """Wait for the exit code.

        Raises:
            TimeoutExpired: the process is still running after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("fork", timeout)
            time.sleep(0.05)
        return code


def _entry_point(name: str) -> Callable[[], None]:
    return next(iter(entry_points(group="console_scripts", name=name))).load()


def preload(environment: dict[str, str]) -> None:
    """Import what the commands import, with their environment variables."""
    os.environ.update(environment)
    for name in PROGRAMS:
        _entry_point(name)


def run(words: list[str], case: Case, environment: dict[str, str], viewer: bool, forked: bool) -> tuple[int, str]:
    """Run a command in the case's folder, and return its exit code and its output.

    A viewer is stopped once it has served its page.
    """
    path = command_path(words[0])
    if path is None:
        return 127, f"{words[0]} is not installed"
    log = case.folder / "log.txt"
    with log.open("w") as file:
        process: subprocess.Popen[bytes] | Forked
        # In a process group of its own, so that the processes that it starts can be stopped with it.
        if forked:
            process = Forked(words, case.folder, file.fileno())
        else:
            process = subprocess.Popen(
                [path, *words[1:]], cwd=case.folder, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        try:
            code = _watch(process, case.timeout, log) if viewer else process.wait(case.timeout)
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return code, log.read_text(errors="replace")


def _watch(process: subprocess.Popen[bytes] | Forked, timeout: float, log: Path) -> int:
    """Return 0 if the viewer serves its page and then runs for `VIEWER_SECONDS`, otherwise another exit code."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if process.poll() is not None:
            return process.returncode or 1
        try:
            with urllib.request.urlopen(f"http://localhost:{PORT}", timeout=2) as page:
                served = b"<html" in page.read().lower()
        except OSError:  # it does not listen yet
            time.sleep(0.5)
            continue
        # The page is served before the model is loaded.
        if served and "Loaded " in log.read_text(errors="replace"):
            time.sleep(VIEWER_SECONDS)
            return 0 if process.poll() is None else process.returncode or 1
        time.sleep(0.5)
    return 124
