"""Results that are on disk as soon as they are known, and a time budget for whoever makes them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common.report import write_json


class Journal:
    """The rows of one measurement, in a JSON file that is complete after each row.

    Args:
        path: of the file; an older one is replaced.
        seconds: how long the measurement may take from now on.
        about: what the rows are of.
    """

    def __init__(self, path: Path, seconds: float, about: dict[str, Any]) -> None:
        self.path, self.seconds = path, seconds
        self._begin = time.monotonic()
        self._record: dict[str, Any] = {"about": about, "budget_seconds": seconds, "rows": []}
        self._write()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What is known so far."""
        return self._record["rows"]

    @property
    def left(self) -> float:
        """Seconds of the budget that are left; 0 once it is used up."""
        return max(self.seconds - (time.monotonic() - self._begin), 0.0)

    def add(self, **row: Any) -> None:
        """Write a row, and print it."""
        self.rows.append(row)
        self._write()
        print("  ".join(f"{name} {_short(value)}" for name, value in row.items()), flush=True)

    def run(self, command: list[str], keep: float = 0.0) -> tuple[int, float, str]:
        """Run another program within the budget; its output goes to a log beside the file, and its end comes back.

        Args:
            command: the program and its arguments; "python" is this Python.
            keep: seconds of the budget that are to be left after it.

        Returns:
            Exit status (124 if the time was over), seconds, and the last lines of the output.
        """
        command = [sys.executable if part == "python" else part for part in command]
        log, begin = self.path.with_suffix(f".{len(self.rows)}.log"), time.monotonic()
        with log.open("w") as out:
            try:
                limit = max(self.left - keep, 1.0)
                status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                status = 124
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return status, time.monotonic() - begin, "\n".join(lines[-4:])

    def _write(self) -> None:
        self._record["seconds"] = round(time.monotonic() - self._begin, 2)
        draft = self.path.with_suffix(".draft")
        write_json(draft, self._record)
        draft.replace(self.path)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
