"""How long the viewer takes to answer while a method trains: from an event in the browser to the first new picture.

    python benchmarks/viewer_latency.py --scene SCENE --repeats 10

Starts `ns-train` with its viewer, lets it train, and opens it in headless Chromium (`apt-get install chromium`).
Time runs from the event (the camera is dragged, an output is chosen, the page is opened) to the arrival of the first
picture in the browser: rendering, the wait for the training step at hand, JPEG and the network are in it. What Chromium
takes to draw is not. The first picture is a coarse one; "whole" is the time until the one at the full resolution of 512
pixels, "-" where none came in --patience seconds: early in a training on a CPU pictures are smaller, so that training
goes on. Prints a table and, with --output, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from browser import Page, answers, chromium, training, wait_until

METHODS = ("raygauss", "instant-ngp-hardmine-bounded")


class Answer(NamedTuple):
    """Of the viewer to one event: seconds to the first picture, its width in pixels, seconds to a whole one."""

    first: float
    width: int
    whole: float | None


def measure(page: Page, event: Callable[[], None], patience: float, for_the_first: float = 60.0) -> Answer:
    """Do something and wait, so many seconds at most, for the first picture and then for a whole one."""
    page.wait(0.5)
    page.frames.clear()
    begin = time.monotonic()
    event()
    if not page.wait(for_the_first, lambda: bool(page.frames)):
        raise SystemExit(f"no picture came within {for_the_first:.0f} s")
    first = page.frames[0]
    page.wait(patience, lambda: max(page.frames[-1][1:]) >= 500)
    whole = page.frames[-1]
    return Answer(first.time - begin, first.width, whole.time - begin if max(whole[1:]) >= 500 else None)


def of_method(
    method: str, scene: Path, repeats: int, warm_up: int, patience: float, log: Path | None
) -> dict[str, list[Answer]]:
    """Answers to each kind of event during one training."""
    found: dict[str, list[Answer]] = {"camera moved": [], "output chosen": []}
    with training(method, scene, "--max-num-iterations", 100_000, log=log) as (process, port, _), chromium() as page:
        wait_until(lambda: answers(port), process, 900, "its viewer answered")
        opened = measure(
            page, lambda: page.call("Page.navigate", url=f"http://127.0.0.1:{port}") and None, patience, 600
        )
        found["page opened"] = [opened]
        step = "return Number((document.body.innerText.match(/Step: (\\d+)/) || [0, 0])[1])"
        wait_until(lambda: page.wait(1) or page.run(step) >= warm_up, process, 1800, f"step {warm_up}")
        begin = page.run(step), time.monotonic()
        for i in range(repeats):
            found["camera moved"].append(measure(page, lambda i=i: page.drag((60 if i % 2 else -60, 0)), patience))  # type: ignore[misc]
            name = "depth" if i % 2 == 0 else "rgb"
            page.click("input('Output type')")
            page.wait_for(f"return exact('[role=option]', '{name}').length > 0", 20)
            option = f"exact('[role=option]', '{name}')[0]"
            found["output chosen"].append(measure(page, lambda option=option: page.click(option), patience))  # type: ignore[misc]
        steps, seconds = page.run(step) - begin[0], time.monotonic() - begin[1]
        print(f"{method}: {steps} training steps in the {seconds:.0f} s of measuring")
    return found


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, required=True, help="folder of the scene")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--repeats", type=int, default=10, help="events of each kind")
    parser.add_argument("--warm-up", type=int, default=50, help="training steps before the first event")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a whole picture")
    parser.add_argument("--log", type=Path, help="where ns-train's output goes")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before the start")
    results: dict[str, Any] = {"load_before": load, "cores": os.cpu_count()}
    rows = []
    for method in arguments.methods:
        found = of_method(
            method, arguments.scene, arguments.repeats, arguments.warm_up, arguments.patience, arguments.log
        )
        results[method] = {event: [answer._asdict() for answer in answers_] for event, answers_ in found.items()}
        for event, given in found.items():
            first = [answer.first for answer in given]
            whole = [answer.whole for answer in given if answer.whole is not None]
            middle = f"{statistics.median(whole):.2f}" if whole else "-"
            rows.append(
                f"| {method} | {event} | {len(given)} | {statistics.median(first):.2f} | {max(first):.2f} | "
                f"{min(a.width for a in given)}-{max(a.width for a in given)} px | {middle} |"
            )
    print("| method | event | times | first picture, median s | worst s | its width | whole picture, median s |")
    print("|---|---|---|---|---|---|---|", *rows, sep="\n")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
