"""Give nerfstudio an `ffmpeg` where the machine has none.

`ns-render interpolate`, `spiral` and `camera-path` refuse to start without a program of that name on the PATH, even
when they are to write single images. The `imageio-ffmpeg` wheel carries one under another name. `offer_ffmpeg`
puts it behind everything else on this process's PATH, so that a machine's own ffmpeg always wins.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

_NAME = "ffmpeg.exe" if sys.platform == "win32" else "ffmpeg"


def default_folder() -> Path:
    """Where the link to the wheel's program is kept: the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "raygauss-hardmine" / "bin"


def offer_ffmpeg(folder: Path | None = None) -> Path | None:
    """Put an `ffmpeg` on the PATH of this process if there is none yet.

    Args:
        folder: where to keep the program under the name that nerfstudio looks for; `default_folder()` when None.

    Returns:
        The program offered; None when the machine has its own, or when none can be offered (no wheel for this
        platform, no folder that can be written to): nerfstudio then says itself what it misses, and when.
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
    # Made beside and moved into place: another process may be doing the same, and a dangling link may lie there.
    draft = program.with_name(f"{os.getpid()}-{program.name}")
    try:
        draft.symlink_to(source)
    except OSError:  # not allowed to every user of Windows
        shutil.copy2(source, draft)
    os.replace(draft, program)
