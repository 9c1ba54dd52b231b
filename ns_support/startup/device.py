"""Which device a method trains on when the user names none."""

from __future__ import annotations

from typing import Literal

import torch


def default_device_type() -> Literal["cuda", "cpu"]:
    """Value for nerfstudio's `MachineConfig.device_type`: "cuda" where there is a CUDA device, else "cpu".

    nerfstudio's own default is "cuda" everywhere, which stops `ns-train` on a machine without one.
    """
    return "cuda" if torch.cuda.is_available() else "cpu"
