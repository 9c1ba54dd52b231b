"""How poses are found for photographs and videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from ns_support.errors import require
from ns_support.help import documented


@documented
@dataclass
class PoseSettings:
    """How COLMAP finds poses, for every command."""

    camera_model: Literal["OPENCV", "SIMPLE_RADIAL", "OPENCV_FISHEYE"] = "OPENCV"
    """COLMAP's model of the lenses. OPENCV_FISHEYE for fisheye lenses (action cameras at their widest, 180 degrees);
    SIMPLE_RADIAL, with fewer numbers to find, for a handful of photographs."""
    max_frames: int = 150
    """Most frames, >= 3, that are taken from a video: the sharpest of each period of time."""
    max_size: int = 1600
    """Longer side (pixels), >= 200, to which photographs are reduced to find features. Training is not concerned."""
    max_features: int = 4096
    """Most features of a photograph, >= 500. Time for matching grows with the square."""
    masks: Path | None = None
    """Masks, 0 hides and 255 shows: a folder with a mask for each photograph (for `a/b.jpg`, `a/b.png` or
    `a/b.jpg.png`), or one file for all of them. None: a folder `masks` in or beside that of the photographs, if there
    is one."""


@documented
@dataclass
class PhotosConfig(PoseSettings):
    """For a folder of photographs without poses, or a video: how COLMAP (pycolmap) finds the poses."""

    result: Path | None = None
    """Folder of the result, a COLMAP model and its images. None: beside the photographs, `NAME-colmap`, or in the
    run's --output-dir where that can't be written."""
    fallback: tyro.conf.Suppress[Path] = Path("outputs")
    """Folder of the result's folder if none can be made beside the photographs. Set by the trainer."""
    must_exist: tyro.conf.Suppress[bool] = False
    """Whether poses are only read, as for a trained model: others would not fit it. Set by the datamanager."""
    prefix: tyro.conf.Suppress[str] = "auto-data --photos."
    """Of the settings' names on the command line; the data parser's own come at its end."""

    def option(self, name: str) -> str:
        """A setting's name on the command line; `raygauss-photos` is given the result's folder as OUTPUT."""
        if name == "result" and self.prefix == "--":
            return "the argument OUTPUT"
        return f"{self.prefix}{name.replace('_', '-')}"

    def check(self) -> None:
        """Refuse settings that are out of range.

        Raises:
            UserError: names the option.
        """
        for name, least in (("max_frames", 3), ("max_size", 200), ("max_features", 500)):
            value = getattr(self, name)
            require(self.option(name), value >= least, f"at least {least}", value)
