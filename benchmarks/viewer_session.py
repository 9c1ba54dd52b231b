"""A long session in nerfstudio's viewer: whether it still renders at the end, with screenshots of beginning and end.

    python examples/make_scene.py --output SCENE --resolution 128
    python benchmarks/viewer_session.py --scene SCENE

Starts `ns-train METHOD`, opens its viewer in headless Chromium (`apt-get install chromium`), and for some minutes moves
the camera, often while an image is being rendered, and chooses other outputs. After that the page must still show new
images, and images at full resolution once training is paused. Ends with the stop button and a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from common.browser import Page, answers, chromium, open_viewer, training, wait_for_checkpoint, wait_until

OUTPUTS = ("depth", "normals", "accumulation", "rgb")


def open_page(page: Page, port: int, shots: Path) -> None:
    """Open the viewer and take a screenshot of its initial state."""
    open_viewer(page, port)
    page.wait(15)
    page.screenshot().save(shots / "opened.png")


def work(page: Page, moves: int, seconds: float) -> None:
    """Move the camera and choose outputs, at regular intervals over `seconds`."""
    begin = time.monotonic()
    for i in range(moves):
        page.drag((50 if i % 2 else -50, 15 if i % 3 else -15))
        if i % 5 == 4:
            page.choose("Output type", OUTPUTS[i // 5 % len(OUTPUTS)])
        page.wait(max(begin + seconds * (i + 1) / moves - time.monotonic(), 0.05))


def session(method: str, arguments: argparse.Namespace) -> dict[str, float | int | str]:
    """One training and its viewer: the number of images, and the time from the last move to the next image."""
    shots = arguments.output / method
    shots.mkdir(parents=True, exist_ok=True)
    running = training(method, arguments.scene, "--max-num-iterations", 100_000, log=shots / "log.txt")
    with running as (process, port, folder), chromium() as page:
        wait_until(lambda: answers(port), process, 900, "its viewer started")
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
        wait_for_checkpoint(process, folder)
        result: dict[str, float | int | str] = {
            "method": method,
            "moves": arguments.moves,
            "seconds": arguments.seconds,
            "images": len(page.frames),
            "first_image_after_the_last_move": round(seconds, 2),
            "renders_at_the_end": int(len(page.frames) > last),
            "full_image_when_paused": int(whole),
            "errors_in_log": (shots / "log.txt").read_text(errors="replace").count("Traceback"),
        }
    return result


def main() -> int:
    """Run all methods; the exit code is 1 if one of them does not render at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, required=True, help="folder of the scene")
    parser.add_argument("--methods", nargs="+", default=["raygauss", "instant-ngp-hardmine-bounded"])
    parser.add_argument("--moves", type=int, default=60, help="number of camera moves")
    parser.add_argument("--seconds", type=float, default=300.0, help="duration of the moves")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for an image at full resolution")
    parser.add_argument(
        "--output", type=Path, default=Path("viewer_session"), help="folder for screenshots and results"
    )
    arguments = parser.parse_args()
    results = []
    for method in arguments.methods:
        results.append(session(method, arguments))
        print(json.dumps(results[-1]), flush=True)
        (arguments.output / "results.json").write_text(json.dumps(results, indent=1))
    return 0 if all(result["renders_at_the_end"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
