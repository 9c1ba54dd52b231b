"""Pictures in rows and columns, with captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP, CAPTION = 8, 20
"""Pixels between pictures, and height of the line above each row."""


def montage(rows: Sequence[tuple[Sequence[NDArray[np.uint8]], Sequence[str]]]) -> Image.Image:
    """Rows of pictures of one size, each with a caption above it."""
    height, width = rows[0][0][0].shape[:2]
    columns = len(rows[0][0])
    size = (columns * (width + GAP) - GAP, len(rows) * (height + CAPTION + GAP) - GAP)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    for i, (pictures, captions) in enumerate(rows):
        for j, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            x, y = j * (width + GAP), i * (height + CAPTION + GAP)
            draw.text((x, y + 2), caption, fill="black", font=font)
            image.paste(Image.fromarray(picture), (x, y + CAPTION))
    return image
