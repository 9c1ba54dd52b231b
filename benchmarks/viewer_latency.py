"""Latency of the viewer while a method trains: the time from an event in the browser to the first new image.

    python benchmarks/viewer_latency.py --scene SCENE --repeats 10

Starts `ns-train` with its viewer, lets it train, and opens it in headless Chromium (`apt-get install chromium`).
Latency is the time from the event (the camera is dragged, an output is chosen, the page is opened) to the arrival of
the first image in the browser. It includes the rest of the current training step, rendering, JPEG and the network, but
not the time that Chromium takes to draw. The first image has a low resolution; "full image" is the time until the image
at the full resolution of 512 pixels, or "-" if none came in --patience seconds: early in a training on a CPU, images
are smaller, so that training continues. Prints a table and, with --output, writes JSON.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from common.browser import TRAINING_STEP, Page, answers, chromium, training, wait_until
from common.report import write_json

METHODS = ("raygauss", "instant-ngp-hardmine-bounded")


class Answer(NamedTuple):
    """The viewer's answer to one event.

    Attributes:
        first: seconds to the first image.
        width: of the first image, in pixels.
        whole: seconds to the image at full resolution, None if there was none.
    """

    first: float
    width: int
    whole: float | None


def measure(page: Page, event: Callable[[], None], patience: float, for_the_first: float = 60.0) -> Answer:
    """Cause an event, wait up to `for_the_first` s for the first image, and `patience` s for one at full resolution."""
    page.wait(0.5)
    page.frames.clear()
    begin = time.monotonic()
    event()
    if not page.wait(for_the_first, lambda: bool(page.frames)):
        raise SystemExit(f"no image came within {for_the_first:.0f} s")
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
        wait_until(lambda: answers(port), process, 900, "its viewer started")
        opened = measure(
            page, lambda: page.call("Page.navigate", url=f"http://127.0.0.1:{port}") and None, patience, 600
        )
        found["page opened"] = [opened]
        wait_until(lambda: page.wait(1) or page.run(TRAINING_STEP) >= warm_up, process, 1800, f"step {warm_up}")
        begin = page.run(TRAINING_STEP), time.monotonic()
        for i in range(repeats):
            found["camera moved"].append(measure(page, lambda i=i: page.drag((60 if i % 2 else -60, 0)), patience))  # type: ignore[misc]
            name = "depth" if i % 2 == 0 else "rgb"
            page.click("input('Output type')")
            page.wait_for(f"return exact('[role=option]', '{name}').length > 0", 20)
            option = f"exact('[role=option]', '{name}')[0]"
            found["output chosen"].append(measure(page, lambda option=option: page.click(option), patience))  # type: ignore[misc]
        steps, seconds = page.run(TRAINING_STEP) - begin[0], time.monotonic() - begin[1]
        print(f"{method}: {steps} training steps during the {seconds:.0f} s of measurements")
    return found


def main() -> None:
    """Measure, print the table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, required=True, help="folder of the scene")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--repeats", type=int, default=10, help="events of each kind")
    parser.add_argument("--warm-up", type=int, default=50, help="training steps before the first event")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a full image")
    parser.add_argument("--log", type=Path, help="file for ns-train's output")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
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
    print("| method | event | times | first image, median s | worst s | its width | full image, median s |")
    print("|---|---|---|---|---|---|---|", *rows, sep="\n")
    write_json(arguments.output, results)


if __name__ == "__main__":
    main()
