"""Nothing lost, nothing silent: what becomes of runs that are killed, of damaged files and of senseless settings.

    python benchmarks/reliability.py kills --count 100
    python benchmarks/reliability.py damage --count 200 [--groups checkpoint config ...] [--cases 7 53 ...]
    python benchmarks/reliability.py fuzz --count 10000
    python benchmarks/reliability.py numerics --count 20
    python benchmarks/reliability.py endurance --count 3000
    python benchmarks/reliability.py determinism

All make small scenes of their own (12 images of 40 x 56 pixels) and train for a few steps, in forked processes with
OMP_NUM_THREADS=1. `--json FILE` keeps every row as soon as there is one, so that an interrupted trial counts; `--seed`
decides what is drawn; a row's `last` is the last line that the process printed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from common.report import machine_facts, print_table, write_json

COUNTS = {"kills": 100, "damage": 200, "fuzz": 10_000, "numerics": 100, "endurance": 3000, "determinism": 1}
"""Default of `--count`: kills, damaged files of a group, files, steps, steps, pairs of runs."""


_EVERY = 2.0
"""Shortest time (s) between two writes of the JSON file."""


def tally(rows: list[dict[str, Any]], group: str, outcome: str) -> list[dict[str, Any]]:
    """How many rows of each group had each outcome."""
    kinds = sorted({str(row[outcome]) for row in rows})
    counts = Counter((row[group], str(row[outcome])) for row in rows)
    groups = list(dict.fromkeys(row[group] for row in rows))
    return [{group: name, **{kind: counts[name, kind] for kind in kinds}} for name in groups]


def trial(name: str, work: Path, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of a trial, each as soon as there is one."""
    from trials.runs import make_scenes, preload

    preload()
    scenes = make_scenes(work / "scenes")
    if name == "kills":
        from trials.kills import kills

        return kills(scenes / "blender", work, given.count, given.seed)
    if name == "damage":
        from trials.damage import damage

        return damage(scenes, work, given.cases or range(given.count), given.seed, given.groups)
    if name == "fuzz":
        from trials.fuzz import fuzz

        return fuzz(work, given.count, given.seed)
    if name == "numerics":
        from trials.numerics import numerics

        return numerics(scenes, work, given.count, given.seed)
    if name == "endurance":
        from trials.endurance import endurance

        return endurance(scenes / "blender", work, given.count)
    from trials.determinism import determinism

    return determinism(scenes / "blender", work, given.count)


def table_of(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of a trial's rows."""
    if name == "kills":
        from trials.kills import summary

        return summary(rows)
    if name in ("damage", "fuzz"):
        return tally(rows, "group" if name == "damage" else "reader", "kind")
    return rows


def kept(rows: Iterable[dict[str, Any]], name: str, path: Path | None, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows; those of a trial that is interrupted are in the file, too.

    Args:
        rows: as they come.
        name: of the trial.
        path: the JSON file, or None for none.
        facts: what it says besides the rows and their table.
    """
    found: list[dict[str, Any]] = []
    written = -_EVERY

    def write() -> None:
        if path is not None and found:
            draft = path.with_name(f"{path.name}.part")
            write_json(draft, {**facts, "reached": len(found), "table": table_of(name, found), "rows": found})
            os.replace(draft, path)

    try:
        for row in rows:
            found.append(row)
            if time.monotonic() - written > _EVERY:
                write()
                written = time.monotonic()
    finally:
        write()
    return found


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Parse the command line, run the trial, print its table; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=tuple(COUNTS))
    parser.add_argument("--count", type=int, help=f"how many; by default {COUNTS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", nargs="*", help="of damaged files; all by default")
    parser.add_argument("--cases", nargs="*", type=int, help="of each group, in place of the first --count")
    parser.add_argument("--work", type=Path, help="a new folder for the runs; by default a temporary one")
    parser.add_argument("--json", type=Path, help="file for all rows")
    given = parser.parse_args(arguments)
    given.count = COUNTS[given.trial] if given.count is None else given.count
    facts = machine_facts() | {"trial": given.trial, "count": given.count, "seed": given.seed}
    with tempfile.TemporaryDirectory(prefix="reliability-") as temporary:
        rows = kept(trial(given.trial, given.work or Path(temporary), given), given.trial, given.json, facts)
    print_table(table_of(given.trial, rows))
    return rows


if __name__ == "__main__":
    main()
