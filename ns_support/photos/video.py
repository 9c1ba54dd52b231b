"""Sharp frames of a video, evenly spread over its time, by the ffmpeg of `imageio-ffmpeg`."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ns_support.errors import UserError

_PER_SECOND = 2.5
"""Frames per second that are taken of a short video."""
_FEWEST = 40
"""Frames that are taken of a video of a few seconds, if it has them."""
_WIDTH = 480
"""Width (pixels) at which sharpness is measured."""
_LEAST = 3
_HDR = ("arib-std-b67", "smpte2084")
_TONE_MAPPED = (
    "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=tonemap=mobius:desat=0,"
    "zscale=t=bt709:m=bt709:r=full,format=yuv420p"
)


class Video(NamedTuple):
    """What ffmpeg says about a video.

    Attributes:
        seconds: its length; 0 if unknown.
        hdr: whether its brightness is coded for screens of high dynamic range.
    """

    seconds: float
    hdr: bool


def extract_frames(video: Path, folder: Path, most: int, follow: Callable[[str], None]) -> list[Path]:
    """Write the sharpest frame of each of some equal periods as JPEG.

    Args:
        video: the user's file.
        folder: for the frames, `frame_00001.jpg` and so on; made if missing.
        most: number of frames, >= 3.
        follow: called with a few words about what is being done.

    Returns:
        The frames, in order.

    Raises:
        UserError: the file is empty, is no video, or has fewer than 3 frames.
    """
    about = probe(video)
    follow("looking for sharp frames")
    sharpness = measure(video)
    if len(sharpness) < _LEAST:
        raise UserError(
            f"The video {video} has {len(sharpness)} frame{'' if len(sharpness) == 1 else 's'} that can be read: poses "
            "need some dozens from different places. Record for half a minute, walking around the subject."
        )
    wanted = frames_wanted(about.seconds, len(sharpness), most)
    chosen = sharpest(sharpness, wanted)
    follow(f"writing {len(chosen)} of {len(sharpness):,} frames")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("frame_*.jpg"):
        old.unlink()
    _write(video, chosen, folder / "frame_%05d.jpg", about.hdr)
    frames = sorted(folder.glob("frame_*.jpg"))
    if len(frames) < _LEAST:
        raise UserError(f"The video {video} can't be read to its end: only {len(frames)} frames could be written.")
    return frames


def frames_wanted(seconds: float, frames: int, most: int) -> int:
    """How many frames to take of a video.

    Args:
        seconds: its length; 0 if unknown.
        frames: its number of frames.
        most: as set by the user.
    """
    wanted = max(_FEWEST, round(_PER_SECOND * seconds)) if seconds > 0 else most
    return min(wanted, most, frames)


def sharpest(sharpness: NDArray[np.float64], number: int) -> list[int]:
    """The indices of the sharpest frame in each of `number` equal periods, in order."""
    edges = np.linspace(0, len(sharpness), number + 1).round().astype(int)
    return [int(a + np.argmax(sharpness[a:b])) for a, b in pairwise(edges.tolist()) if b > a]


def laplacian_variance(gray: NDArray[np.uint8]) -> float:
    """Variance of the discrete Laplacian of an image [H, W]: small if it is blurred."""
    return float(cv2.Laplacian(gray, cv2.CV_32F).var())


def probe(video: Path) -> Video:
    """What ffmpeg says about a file.

    Raises:
        UserError: the file does not exist, is empty, or has no moving pictures in it.
    """
    if not video.is_file():
        raise UserError(f"The video {video} does not exist.")
    if video.stat().st_size == 0:
        raise UserError(f"The video {video} is empty (0 bytes): copy it again.")
    text = subprocess.run(
        [_ffmpeg(), "-hide_banner", "-nostdin", "-i", str(video)], capture_output=True, check=False
    ).stderr.decode("utf8", "replace")
    stream = re.search(r"Stream #.*: Video: .*", text)
    if stream is None:
        raise UserError(f"{video} can't be read as a video: {_last_line(text, video)}. Play it, or export it as MP4.")
    length = re.search(r"Duration: (\d+):(\d+):(\d+(?:\.\d+)?)", text)
    seconds = 0.0
    if length:
        seconds = 3600.0 * int(length[1]) + 60.0 * int(length[2]) + float(length[3])
    return Video(seconds, any(name in stream[0] for name in _HDR))


def measure(video: Path) -> NDArray[np.float64]:
    """The sharpness of each frame, in order; those after a place that can't be decoded are missing."""
    # Sides are rounded to even numbers; the size of what comes is read from the header of each picture (PGM).
    command = [_ffmpeg(), "-v", "error", "-nostdin", "-i", str(video), "-an", "-sn", "-dn", "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough", "-vf", f"scale='min({_WIDTH},iw)':-2:flags=area,format=gray"]
    command += ["-f", "image2pipe", "-c:v", "pgm", "-"]
    found = []
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None
        try:
            while True:
                if process.stdout.readline().strip() != b"P5":
                    break
                width, height = map(int, process.stdout.readline().split())
                process.stdout.readline()
                data = process.stdout.read(width * height)
                if len(data) < width * height:
                    break
                found.append(laplacian_variance(np.frombuffer(data, np.uint8).reshape(height, width)))
        finally:
            process.kill()
    return np.array(found)


def _write(video: Path, chosen: list[int], target: Path, hdr: bool) -> None:
    select = "select='" + "+".join(f"eq(n,{index})" for index in chosen) + "'"
    command = [_ffmpeg(), "-v", "error", "-nostdin", "-y", "-i", str(video), "-an", "-sn", "-dn", "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough", "-q:v", "2"]
    # Not every ffmpeg has the filters for high dynamic range: then colours are pale, and poses as good.
    for filters in ([f"{select},{_TONE_MAPPED}"] if hdr else []) + [select]:
        done = _run([*command, "-vf", filters, str(target)])
        if done.returncode == 0:
            break
    if done.returncode != 0 and not target.with_name(target.name % 1).is_file():
        text = done.stderr.decode("utf8", "replace")
        raise UserError(f"No frames of the video {video} could be written: {_last_line(text, video)}.")


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, check=False)


def _ffmpeg() -> str:
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise UserError("There is no ffmpeg for this machine in imageio-ffmpeg: install ffmpeg for videos.") from error


def _last_line(text: str, video: Path) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and "must be specified" not in line]
    line = lines[-1] if lines else "ffmpeg says nothing about it"
    line = re.sub(r"^Error opening input( files?)?:?", "", line.rpartition("] ")[2].replace(f"{video}: ", ""))
    return line.strip(" .:") or "ffmpeg can't open it"
