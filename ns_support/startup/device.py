"""The default training device."""

from __future__ import annotations

from typing import Literal

import torch


def default_device_type() -> Literal["cuda", "cpu"]:
    """Value for nerfstudio's `MachineConfig.device_type`: "cuda" if there is a CUDA device, else "cpu".

    nerfstudio's own default is always "cuda", with which `ns-train` fails on a machine without a GPU.
    """
    return "cuda" if torch.cuda.is_available() else "cpu"
