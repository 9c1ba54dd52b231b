"""Make a scene, train on it, evaluate, and render a comparison image and a turntable video, in one command.

    python examples/demo.py

All files are written to `demo_output/` at the root of the repository; a second run replaces them.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import tyro
from make_scene import make_scene
from PIL import Image, ImageDraw, ImageFont

STEPS = 1500
"""Training steps: a few minutes on two CPU cores."""
TRAIN_OPTIONS = (
    # Without the viewer, the command ends when the training ends.
    *("--vis", "tensorboard"),
    # The test images are evaluated by `ns-eval`.
    *("--steps-per-eval-image", "100000"),
    *("--steps-per-eval-all-images", "100000"),
)
"""Options of `ns-train` other than data, output and number of steps."""

OUTPUT = Path(__file__).resolve().parents[1] / "demo_output"
VIEWS = 3
"""Number of test views in the comparison image."""
TILE = 256
"""Height and width in pixels of each view in the comparison image."""
GAP, CAPTION = 12, 28
"""Pixels between the views, and height of the line of captions above them."""

TURN, FRAME_RATE = 48, 16
"""Number of frames of the turntable video, and frames per second."""
DISTANCE, HEIGHT, FIELD = 3.6, 1.6, 40.0
"""Of the turntable's camera: distance from the scene's axis and height above its centre (scene units), and its vertical
field of view (degrees)."""

# nerfstudio emits these while it imports its own models, before a plugin could filter them.
_NERFSTUDIOS_WARNINGS = (
    "`torch.jit.script` is deprecated",
    "`torch.cuda.amp.custom_fwd(args...)` is deprecated",
    "`torch.cuda.amp.custom_bwd(args...)` is deprecated",
)


def run(command: str, *arguments: str | Path) -> None:
    """Run one of nerfstudio's commands, with its output on this terminal.

    Raises:
        SystemExit: the command is not installed, or it failed.
    """
    executable = shutil.which(command, path=sysconfig.get_path("scripts")) or shutil.which(command)
    if executable is None:
        sys.exit(f"The demo needs nerfstudio's command {command}, which is not installed beside {sys.executable}.")
    words = [str(argument) for argument in arguments]
    print(f"\n$ {shlex.join([command, *words])}\n", flush=True)
    filters = [
        os.environ.get("PYTHONWARNINGS", ""),
        *(f"ignore:{text}:FutureWarning" for text in _NERFSTUDIOS_WARNINGS),
    ]
    environment = os.environ | {"PYTHONWARNINGS": ",".join(filter(None, filters))}
    code = subprocess.run([executable, *words], env=environment, check=False).returncode
    if code != 0:
        sys.exit(f"The demo stopped because {command} failed with exit code {code}; its output is above.")


def picture(images: Path, captions: Sequence[str], views: int = VIEWS) -> Image.Image:
    """The comparison image: ground truth, prediction and depth side by side, with a row per test view.

    Args:
        images: output folder of `ns-eval --render-output-path`: `eval_img_*.png`, with ground truth, prediction and
            error side by side, and `eval_depth_*.png`.
        captions: one for each of the three columns.
        views: number of rows, evenly spread over all test views.

    Raises:
        SystemExit: the folder has no such images.
    """
    triples, depths = sorted(images.glob("eval_img_*.png")), sorted(images.glob("eval_depth_*.png"))
    if not triples or len(triples) != len(depths):
        sys.exit(f"The demo found no images of the test views in {images}.")
    chosen = [i * len(triples) // views for i in range(min(views, len(triples)))]

    sheet = Image.new("RGB", (3 * TILE + 4 * GAP, CAPTION + len(chosen) * (TILE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for column, caption in enumerate(captions):
        middle = GAP + column * (TILE + GAP) + TILE // 2
        draw.text((middle, CAPTION // 2), caption, fill="#444444", font=font, anchor="mm")
    for row, view in enumerate(chosen):
        triple, depth = Image.open(triples[view]).convert("RGB"), Image.open(depths[view]).convert("RGB")
        width, height = triple.width // 3, triple.height
        tiles = triple.crop((0, 0, width, height)), triple.crop((width, 0, 2 * width, height)), depth
        for column, tile in enumerate(tiles):
            corner = GAP + column * (TILE + GAP), CAPTION + row * (TILE + GAP)
            sheet.paste(tile.resize((TILE, TILE), Image.Resampling.LANCZOS), corner)
    return sheet


def turntable(path: Path, side: int) -> None:
    """Write a camera path for `ns-render camera-path`: once around the scene, from slightly above.

    Args:
        path: the `.json` file.
        side: height and width of the frames in pixels.
    """
    frames = []
    for i in range(TURN):
        angle = 2 * math.pi * i / TURN
        c, s, far = math.cos(angle), math.sin(angle), math.hypot(DISTANCE, HEIGHT)
        up, out = DISTANCE / far, HEIGHT / far
        # Columns: the camera's axes (right, up, and back, away from the centre), and its position.
        pose = [
            [-s, -out * c, up * c, DISTANCE * c],
            [c, -out * s, up * s, DISTANCE * s],
            [0.0, up, out, HEIGHT],
            [0.0, 0.0, 0.0, 1.0],
        ]
        frames.append({"camera_to_world": [x for row in pose for x in row], "fov": FIELD, "aspect": 1.0})
    size = {"camera_type": "perspective", "render_height": side, "render_width": side}
    path.write_text(json.dumps({**size, "fps": FRAME_RATE, "seconds": TURN / FRAME_RATE, "camera_path": frames}))


def demo(method: str = "raygauss", steps: int = STEPS, options: str = "", resolution: int = 128) -> None:
    """Train and evaluate a method on a synthetic scene, and render a comparison image and a turntable video.

    Args:
        method: Name of any nerfstudio method.
        steps: Training steps.
        options: More options for ns-train, as one string.
        resolution: Height and width of the scene's images in pixels.
    """
    scene, training, images = OUTPUT / "scene", OUTPUT / "training", OUTPUT / "eval_images"
    for folder in (scene, training, images):
        shutil.rmtree(folder, ignore_errors=True)
    make_scene(scene, resolution=resolution)

    names: list[str | Path] = ["--output-dir", training, "--experiment-name", "demo", "--timestamp", "run"]
    train_options = [
        "--max-num-iterations",
        str(steps),
        *TRAIN_OPTIONS,
        *shlex.split(options),
    ]
    run("ns-train", method, "--data", scene, *names, *train_options, "blender-data")

    config, scores = training / "demo" / method / "run" / "config.yml", OUTPUT / "eval.json"
    run("ns-eval", "--load-config", config, "--output-path", scores, "--render-output-path", images)

    results = json.loads(scores.read_text())["results"]
    known = {"psnr": "{:.2f} dB PSNR", "ssim": "{:.3f} SSIM", "lpips": "{:.3f} LPIPS"}
    print(
        f"\n{method} on the test views:",
        ", ".join(text.format(results[k]) for k, text in known.items() if k in results),
    )
    path = OUTPUT / "picture.png"
    picture(images, ["ground truth", f"{method}, {results['psnr']:.1f} dB", "depth"]).save(path)

    cameras, video = OUTPUT / "turntable.json", OUTPUT / "turntable.mp4"
    turntable(cameras, resolution)
    words = ("--camera-path-filename", cameras, "--output-path", video, "--rendered-output-names", "rgb", "depth")
    run("ns-render", "camera-path", "--load-config", config, *words)
    viewer = shutil.which("ns-viewer", path=sysconfig.get_path("scripts")) or "ns-viewer"
    print(f"\nThe test views: {path}\nOnce around:    {video}")
    print(f"Look at it:     {shlex.join([viewer, '--load-config', str(config)])}")


if __name__ == "__main__":
    try:
        tyro.cli(demo)
    except KeyboardInterrupt:
        sys.exit("The demo was interrupted.")
