"""Provide nerfstudio with an `ffmpeg` if the machine has none.

`ns-render interpolate`, `spiral` and `camera-path` refuse to start without a program of that name on the PATH, even
when they only write single images. The `imageio-ffmpeg` wheel contains one under another name. `offer_ffmpeg` appends
it to this process's PATH, so that the machine's own ffmpeg always takes precedence.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

_NAME = "ffmpeg.exe" if sys.platform == "win32" else "ffmpeg"


def default_folder() -> Path:
    """The folder for the link to the wheel's program, in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "raygauss-hardmine" / "bin"


def offer_ffmpeg(folder: Path | None = None) -> Path | None:
    """Put an `ffmpeg` on the PATH of this process if there is none yet.

    Args:
        folder: where to link the program under the name that nerfstudio looks for; None: `default_folder()`.

    Returns:
        The program; None if the machine has its own, or if none can be provided (no wheel for this platform, no
        writable folder). nerfstudio then reports the missing program when it needs it.
    """
    if shutil.which("ffmpeg") is not None:
        return None
    try:
        program = (folder or default_folder()) / _NAME
        if not program.exists():
            _place(program)
    except (OSError, RuntimeError):
        return None
    os.environ["PATH"] = os.pathsep.join(filter(None, [os.environ.get("PATH"), str(program.parent)]))
    return program


def _place(program: Path) -> None:
    import imageio_ffmpeg

    source = imageio_ffmpeg.get_ffmpeg_exe()
    program.parent.mkdir(parents=True, exist_ok=True)
    # Created under another name and then moved: another process may be doing the same, and the old link may dangle.
    draft = program.with_name(f"{os.getpid()}-{program.name}")
    try:
        draft.symlink_to(source)
    except OSError:  # on Windows not every user may create links
        shutil.copy2(source, draft)
    os.replace(draft, program)
