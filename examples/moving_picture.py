"""The moving picture at the top of the README: once around the demo's scene, with colours, distances and normals.

    python examples/demo.py
    python examples/moving_picture.py

The first command trains; the second renders its model from `turntable`'s cameras.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import demo
import tyro
from PIL import Image, ImageDraw, ImageFont

OUTPUTS = ("rgb", "depth", "normals")
"""What is shown, from left to right; outputs of `raygauss`."""
CAPTION = 22
"""Height in pixels of the line of captions."""


def animation(frames: list[Path], path: Path, quality: int) -> None:
    """Write an animated WebP file of frames that show all outputs side by side.

    Args:
        frames: images of `ns-render`, in order.
        path: the `.webp` file.
        quality: of lossy compression, 1 to 100.

    Raises:
        SystemExit: there are no frames.
    """
    if not frames:
        sys.exit("ns-render wrote no frames.")
    font, pictures = ImageFont.load_default(size=14), []
    for frame in frames:
        with Image.open(frame) as image:
            picture = Image.new("RGB", (image.width, image.height + CAPTION), "white")
            picture.paste(image.convert("RGB"), (0, CAPTION))
        draw, width = ImageDraw.Draw(picture), picture.width / len(OUTPUTS)
        for column, name in enumerate(OUTPUTS):
            draw.text(((column + 0.5) * width, CAPTION / 2), name, fill="#444444", font=font, anchor="mm")
        pictures.append(picture)
    duration = round(1000 / demo.FRAME_RATE)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, loop=0, quality=quality)


def main(output: Path = Path("docs/images/turntable.webp"), side: int = 240, quality: int = 70) -> None:
    """Render the demo's trained model once around, and write the animation.

    Args:
        output: the `.webp` file.
        side: height and width of each picture in pixels.
        quality: of lossy compression, 1 to 100.
    """
    config = demo.OUTPUT / "training" / "demo" / "raygauss" / "run" / "config.yml"
    if not config.is_file():
        sys.exit(f"There is no trained model at {config}: run examples/demo.py first.")
    cameras, frames = demo.OUTPUT / "moving_picture.json", demo.OUTPUT / "frames"
    shutil.rmtree(frames, ignore_errors=True)
    demo.turntable(cameras, side)
    words = ("--camera-path-filename", cameras, "--output-format", "images", "--image-format", "png")
    words += ("--output-path", frames, "--rendered-output-names", *OUTPUTS)
    demo.run("ns-render", "camera-path", "--load-config", config, *words)
    animation(sorted(frames.glob("*.png")), output, quality)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    tyro.cli(main)
