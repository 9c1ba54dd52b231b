"""Results of a benchmark: what machine they are of, a table on the terminal, a JSON file."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from ns_support.concurrency.threads import num_threads


def machine_facts() -> dict[str, Any]:
    """Machine, threads of the kernels, and version of PyTorch."""
    return {"machine": platform.machine(), "threads": num_threads(), "torch": torch.__version__}


def machine_line() -> str:
    """Machine, PyTorch's threads, and its version, as one line."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys in aligned columns below their names."""
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in rows[0]}, *rows]:
        print("  ".join(str(row[name]).ljust(widths[name]) for name in rows[0]))


def write_json(path: Path | None, record: Any) -> None:
    """Write a record, and make the folder if there is none; without a path, do nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
