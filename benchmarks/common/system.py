"""What the operating system is asked for: a free port, peak memory, and where a command is installed."""

from __future__ import annotations

import resource
import shutil
import socket
import sysconfig


def free_port() -> int:
    """A TCP port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def peak_mebibytes() -> float:
    """Peak of this process's resident memory so far (MiB), on Linux."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def command_path(name: str) -> str | None:
    """The executable of a command such as `ns-train`, beside this Python; None if it is not installed there."""
    return shutil.which(name, path=sysconfig.get_path("scripts"))
