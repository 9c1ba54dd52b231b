"""Screenshots of a trained run in both viewers: what the beginning and the end of `docs/viewer.md` show.

    python examples/demo.py
    python benchmarks/run_screenshots.py demo_output/training/demo/raygauss/run

Opens the run in nerfstudio's viewer (`ns-viewer`) and in `raygauss-view`, each in headless Chromium (`apt-get install
chromium`), waits for a sharp image and writes `viewer_run.png` and `raygauss_view.png`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.browser import Page, answers, chromium, wait_until
from common.system import command_path, free_port

DRAWN = 15.0
"""Seconds that the browser has to draw an image that has come."""


@contextmanager
def running(name: str, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of the commands beside this Python until the block ends."""
    command = command_path(name)
    if command is None:
        sys.exit(f"{name} is not installed beside {sys.executable}")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([command, *map(str, words)], stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def take(page: Page, port: int, path: Path, side: int, patience: float) -> None:
    """Open a page, wait for an image whose longer side has `side` pixels or more, and take a screenshot."""
    page.call("Page.navigate", url=f"http://127.0.0.1:{port}")
    if not page.wait(patience, lambda: any(max(frame[1:]) >= side for frame in page.frames)):
        print(f"{path.name}: no image of {side} pixels came within {patience:.0f} s")
    page.wait(DRAWN)
    image = page.screenshot().quantize(256, kmeans=2)  # without kmeans, rare colours may replace frequent ones
    image.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def main() -> None:
    """Parse the command line, and take a screenshot of each viewer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="folder for the screenshots")
    parser.add_argument("--side", type=int, default=512, help="longer side of nerfstudio's images to wait for, pixels")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for an image at full resolution")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)

    port = free_port()
    words = ("--load-config", given.run / "config.yml", "--viewer.websocket-port", port)
    with running("ns-viewer", *words) as process, chromium() as page:
        wait_until(lambda: answers(port), process, 300, "its viewer started")
        take(page, port, given.output / "viewer_run.png", given.side - 10, given.patience)

    port = free_port()
    with running("raygauss-view", given.run, "--port", port) as process, chromium() as page:
        wait_until(lambda: answers(port), process, 300, "its page was there")
        take(page, port, given.output / "raygauss_view.png", 750, given.patience)


if __name__ == "__main__":
    main()
