"""A long session in nerfstudio's viewer: whether it still draws at its end, with screenshots of its beginning and end.

    python examples/make_scene.py --output SCENE --resolution 128
    python benchmarks/viewer_session.py --scene SCENE

Starts `ns-train METHOD`, opens its viewer in headless Chromium (`apt-get install chromium`), and for some minutes moves
the camera, often in the middle of a picture, and chooses other outputs. Then the page must show new pictures, whole
ones once training is paused. Ends with the stop button and a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from browser import Page, answers, chromium, training, wait_until

OUTPUTS = ("depth", "normals", "accumulation", "rgb")


def open_page(page: Page, port: int, shots: Path) -> None:
    """Open the viewer and take a screenshot of what it opens on."""
    page.call("Page.navigate", url=f"http://127.0.0.1:{port}")
    if not page.wait(600, lambda: bool(page.frames)):
        sys.exit("no picture came within 600 s")
    page.wait(15)
    page.screenshot().save(shots / "opened.png")


def work(page: Page, moves: int, seconds: float) -> None:
    """Move the camera and choose outputs, spread evenly over a time."""
    begin = time.monotonic()
    for i in range(moves):
        page.drag((50 if i % 2 else -50, 15 if i % 3 else -15))
        if i % 5 == 4:
            page.choose("Output type", OUTPUTS[i // 5 % len(OUTPUTS)])
        page.wait(max(begin + seconds * (i + 1) / moves - time.monotonic(), 0.05))


def session(method: str, arguments: argparse.Namespace) -> dict[str, float | int | str]:
    """One training and its viewer: how many pictures came, and how soon after the last move."""
    shots = arguments.output / method
    shots.mkdir(parents=True, exist_ok=True)
    running = training(method, arguments.scene, "--max-num-iterations", 100_000, log=shots / "log.txt")
    with running as (process, port, folder), chromium() as page:
        wait_until(lambda: answers(port), process, 900, "its viewer answered")
        open_page(page, port, shots)
        work(page, arguments.moves, arguments.seconds)
        page.choose("Output type", "rgb")
        last = len(page.frames)
        begin = time.monotonic()
        page.drag((40, 0))
        page.wait(60, lambda: len(page.frames) > last)
        seconds = time.monotonic() - begin
        page.screenshot().save(shots / "after.png")
        page.press("Pause Training")
        page.drag((20, 0))
        whole = page.settled(arguments.patience, side=500)
        page.wait(2)
        page.screenshot().save(shots / "paused.png")
        page.press("Resume Training")
        page.press("Stop training and save")
        checkpoints = folder / "outputs"
        wait_until(lambda: any(checkpoints.rglob("*.ckpt")), process, 300, "there was a checkpoint")
        result: dict[str, float | int | str] = {
            "method": method,
            "moves": arguments.moves,
            "seconds": arguments.seconds,
            "pictures": len(page.frames),
            "first_picture_after_the_last_move": round(seconds, 2),
            "draws_at_the_end": int(len(page.frames) > last),
            "whole_picture_when_paused": int(whole),
            "errors_in_log": (shots / "log.txt").read_text(errors="replace").count("Traceback"),
        }
    return result


def main() -> int:
    """Both methods; exit code 1 if one of them does not draw at its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, required=True, help="folder of the scene")
    parser.add_argument("--methods", nargs="+", default=["raygauss", "instant-ngp-hardmine-bounded"])
    parser.add_argument("--moves", type=int, default=60, help="times that the camera is moved")
    parser.add_argument("--seconds", type=float, default=300.0, help="time over which they are spread")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for a whole picture")
    parser.add_argument(
        "--output", type=Path, default=Path("viewer_session"), help="folder for screenshots and figures"
    )
    arguments = parser.parse_args()
    results = []
    for method in arguments.methods:
        results.append(session(method, arguments))
        print(json.dumps(results[-1]), flush=True)
        (arguments.output / "results.json").write_text(json.dumps(results, indent=1))
    return 0 if all(result["draws_at_the_end"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
