"""Work in forked processes, and how it ended.

A child inherits everything that was imported and compiled, and takes no time to start. Fork before this process has
threads.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

GIB = 1 << 30
_PATIENCE = 10
_OWN = re.compile(r'File "[^"]*/(?:ns_support|raygauss_ns|hardmine_ns)/')


class Outcome(NamedTuple):
    """How a child ended.

    Attributes:
        kind: "ok" (exit code 0), "sentence" (another one, and text without a traceback), "traceback", "hang" (beyond
            the time limit), "signal" (killed) or "silent" (another exit code without a word).
        code: exit code; negative for a signal.
        seconds: duration.
        mebibytes: largest memory in use.
        text: what it printed.
    """

    kind: str
    code: int
    seconds: float
    mebibytes: float
    text: str

    @property
    def last(self) -> str:
        """The last line that it printed."""
        lines = self.text.strip().splitlines()
        return lines[-1].strip()[:300] if lines else ""

    @property
    def is_ours(self) -> bool:
        """Whether a traceback passes through this project's files."""
        return self.kind == "traceback" and bool(_OWN.search(self.text))


def _code_of(work: Callable[[], Any]) -> int:
    """The exit code that the interpreter would give."""
    try:
        work()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def start(work: Callable[[], Any], log: Path, memory: int = 24 * GIB) -> int:
    """Start a child.

    Args:
        work: what it does.
        log: the file for what it prints.
        memory: limit of its address space (bytes).

    Returns:
        Its process id.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))  # a test's may be others
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        code = _code_of(work)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def finish(child: int, log: Path, limit: float, begun: float | None = None) -> Outcome:
    """Wait for a child, and kill it if it takes too long.

    Args:
        child: its process id.
        log: what it prints.
        limit: longest duration (s) on a machine without other work. A process that has computed for half of it by
            then hangs, or one that took ten times as long.
        begun: when it was started, by `time.monotonic`; None: now.
    """
    begun = time.monotonic() if begun is None else begun
    hangs = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        passed = time.monotonic() - begun
        # On a busy machine, a process that waits for its turn takes longer and does not hang.
        if passed > limit and not hangs and (passed > _PATIENCE * limit or _busy(child) > 0.5 * limit):
            hangs = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    text, code = log.read_text(errors="replace"), os.waitstatus_to_exitcode(status)
    kind = "hang" if hangs else _kind(code, text)
    return Outcome(kind, code, time.monotonic() - begun, usage.ru_maxrss / 1024, text)


def _busy(child: int) -> float:
    """How long a process has computed (s)."""
    try:
        words = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def run(work: Callable[[], Any], log: Path, limit: float = 60.0, memory: int = 24 * GIB) -> Outcome:
    """Start a child, and wait for it."""
    begun = time.monotonic()
    return finish(start(work, log, memory), log, limit, begun)


def _kind(code: int, text: str) -> str:
    if code < 0:
        return "signal"
    if "Traceback (most recent call last)" in text:
        return "traceback"
    if code == 0:
        return "ok"
    return "sentence" if text.strip() else "silent"
