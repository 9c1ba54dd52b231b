"""Make `ns-render spiral` work with this package's methods.

nerfstudio 1.1.5 requires a datamanager of rays, although it only takes a camera from it, and mixes float32 with float64
on current versions of PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from nerfstudio.cameras import camera_utils
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from torch import Tensor

_COMMANDS = ("nerfstudio.scripts.render", "__main__")
"""The names that `ns-render`'s module may be loaded under."""


def prepare_rendering() -> None:
    """Fix `ns-render spiral` in this process; does nothing outside of `ns-render`."""
    for name in _COMMANDS:
        command: Any = sys.modules.get(name)
        if hasattr(command, "SpiralRender") and not getattr(command.get_spiral_path, "is_ours", False):
            command.get_spiral_path = _in_one_precision(command.get_spiral_path)
            # nerfstudio uses this name in a tuple of classes for `isinstance`; such tuples may be nested.
            command.ParallelDataManager = (command.ParallelDataManager, FullImageDatamanager)


def _in_one_precision(get_spiral_path: Callable[..., Cameras]) -> Callable[..., Cameras]:
    def path(*args: Any, **kwargs: Any) -> Cameras:
        theirs = camera_utils.viewmatrix

        def viewmatrix(lookat: Tensor, up: Tensor, position: Tensor) -> Tensor:
            matrix: Tensor = theirs(lookat.float(), up.float(), position.float())
            return matrix

        camera_utils.viewmatrix = viewmatrix
        try:
            return get_spiral_path(*args, **kwargs)
        finally:
            camera_utils.viewmatrix = theirs

    path.is_ours = True  # type: ignore[attr-defined]
    return path
