"""Screenshots of nerfstudio's viewer while each method trains, one for each feature: what `docs/viewer.md` shows.

    python benchmarks/viewer_screenshots.py --scene SCENE

Starts `ns-train METHOD` on the scene, opens its viewer in headless Chromium (`apt-get install chromium`), uses the
controls with mouse and keyboard as a user does, and writes a PNG file per feature. Ends each training with the viewer's
stop button and checks that a checkpoint was saved. Options that this script does not have are passed to `ns-train`, for
example `--max-num-iterations 3000` or, for one method, `--load-dir` with the absolute path of a run to continue.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.browser import (
    TRAINING_STEP,
    Page,
    answers,
    chromium,
    open_viewer,
    training,
    wait_for_checkpoint,
    wait_until,
)


class Session:
    """One training and its viewer."""

    def __init__(self, page: Page, folder: Path, side: int, patience: float) -> None:
        self.page, self.folder, self.side, self.patience = page, folder, side, patience

    def shoot(self, name: str, control: str) -> None:
        """Wait for an image at full resolution, and take a screenshot."""
        if not self.page.settled(self.patience, side=self.side - 10):
            print(f"{name}: no image at full resolution came within {self.patience:.0f} s")
        self.take(name, control)

    def take(self, name: str, control: str) -> None:
        """Scroll to a control and take a screenshot."""
        self.page.run(f"middle({control})")
        self.page.call("Input.dispatchMouseEvent", type="mouseMoved", x=400, y=400)  # no tooltip over the panel
        self.page.wait(2.0)
        image = self.page.screenshot().quantize(256, kmeans=2)  # without kmeans, rare colours may replace frequent ones
        path = self.folder / f"viewer_{name}.png"
        image.save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB, step {self.page.run(TRAINING_STEP)}", flush=True)

    def output(self, name: str, shot: str) -> None:
        """Choose an output and take a screenshot."""
        self.page.choose("Output type", name)
        self.shoot(shot, "input('Output type')")


def raygauss(session: Session) -> None:
    """Take the screenshots of `raygauss`: outputs, then sliders, then the crop."""
    page = session.page
    page.choose("Output type", "rgb")
    session.shoot("training", "exact('button', 'Pause Training')[0]")
    for name in ("depth", "accumulation", "normals"):
        session.output(name, name)
    page.choose("Output type", "density_slice")
    page.enter("Slice at", 0.1)
    session.shoot("density_slice", "input('Slice at')")
    page.choose("Output type", "rgb")
    page.enter("Gaussian scale", 0.4)
    session.shoot("gaussian_scale", "input('Gaussian scale')")
    page.enter("Gaussian scale", 1.0)
    page.enter("Density cut-off", 4.0)
    session.shoot("cutoff", "input('Density cut-off')")
    page.enter("Density cut-off", 0.1)
    page.click("input('Enable ')")
    page.wait(1.0)
    page.enter("Crop scale", 0.8, field=2)
    page.enter("Background color", "rgb(200, 225, 240)")
    session.shoot("crop", "input('Crop scale')")


def hardmine(session: Session) -> None:
    """Take the screenshots of instant-ngp with mining: the hard samples, and mining's settings."""
    page = session.page
    page.choose("Output type", "hard_samples")
    before = page.run(TRAINING_STEP)
    page.wait_for(f"{TRAINING_STEP.replace('return', 'return 100 <')} - {before}", session.patience)
    session.shoot("hard_samples", "input('Output type')")
    page.choose("Output type", "rgb")
    page.choose("Mining rule", "topk")
    page.enter("Greatest fraction", 0.25)
    session.shoot("mining", "input('Mining rule')")


def photograph(page: Page, method: str, port: int, arguments: argparse.Namespace) -> None:
    """Open the viewer of a running training, take its screenshots, and press the stop button."""
    open_viewer(page, port)
    if page.wait_for("return exact('button', 'Hide Train Cams').length > 0", 10):
        page.press("Hide Train Cams")
    page.enter("Max res", arguments.side)
    if arguments.away:
        page.scroll(arguments.away)
    if not page.wait_for(f"{TRAINING_STEP} >= {arguments.steps}", 3600):
        sys.exit(f"step {arguments.steps} was not reached within an hour")
    session = Session(page, arguments.output, arguments.side, arguments.patience)
    (raygauss if method.startswith("raygauss") else hardmine)(session)
    page.press("Stop training and save")
    page.wait(5)
    session.take(f"stop_{method}", "exact('button', 'Stop training and save')[0]")


def of_method(method: str, arguments: argparse.Namespace) -> None:
    """Train a method, take its screenshots, and stop with the button."""
    running = training(method, arguments.scene, *arguments.options, log=arguments.log)
    with running as (process, port, folder), chromium() as page:
        wait_until(lambda: answers(port), process, 900, "its viewer started")
        photograph(page, method, port, arguments)
        print(f"{method}: stopped, saved {wait_for_checkpoint(process, folder).name}")


def main() -> None:
    """Parse the command line, and take the screenshots of each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, required=True, help="folder of the scene")
    parser.add_argument("--steps", type=int, default=400, help="training steps before the first screenshot")
    parser.add_argument("--methods", nargs="+", default=["raygauss", "instant-ngp-hardmine-bounded"])
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="folder for the screenshots")
    parser.add_argument("--away", type=int, default=0, help="notches of the mouse wheel that the camera moves back")
    parser.add_argument("--side", type=int, default=512, help="longer side of the viewer's images, pixels ('Max res')")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for an image at full resolution")
    parser.add_argument("--log", type=Path, help="file for ns-train's output")
    arguments, arguments.options = parser.parse_known_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for method in arguments.methods:
        of_method(method, arguments)


if __name__ == "__main__":
    sys.exit(main())
