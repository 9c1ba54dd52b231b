"""Whether Triton is available, and where its kernels run. Importing this module does not import Triton."""

from __future__ import annotations

from importlib import import_module
from subprocess import CalledProcessError
from types import ModuleType
from typing import Any

import torch

from ns_support.errors import UserError

MINIMUM = "3.2"
"""The first Triton whose language has what the kernels use (`gather`)."""


def triton_module(name: str, what: str, instead: str = "") -> ModuleType:
    """Import a module of Triton kernels, or report what to install.

    Args:
        name: the module's full name.
        what: the feature that needs it, as the subject of a sentence.
        instead: an alternative without Triton, beginning with ", or".

    Raises:
        ImportError: Triton is missing, or too old.
    """
    try:
        return import_module(name)
    except (ImportError, AttributeError) as error:  # AttributeError: a Triton too old for what the kernels use
        raise ImportError(
            f'{what} needs Triton {MINIMUM} or newer ({error}): pip install "triton>={MINIMUM}" (on Windows: '
            f'"triton-windows>={MINIMUM}"){instead}'
        ) from error


def check_gpu(device: torch.device | str) -> None:
    """Refuse to compute on a GPU for which Triton can't compile: before any data are loaded, and not at the first step.

    Triton comes with what compiles for the GPU, but needs a C compiler for what launches a kernel.

    Raises:
        UserError: says what to install.
    """
    if torch.device(device).type != "cuda":
        return
    try:
        triton_module("ns_support.kernels.gpu", f"Computing on {device}").launch(device)
    except ImportError as error:
        raise UserError(f"{error}.") from error
    except (RuntimeError, OSError, CalledProcessError) as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise UserError(
            f"Triton can't run a kernel on {device}: {reason}. If a C compiler is what is missing, install gcc (or "
            "name one in the environment variable CC); or compute without a GPU, with --machine.device-type cpu."
        ) from error


def is_interpreted(kernel: Any) -> bool:
    """Whether a kernel runs in Triton's interpreter, on tensors of the CPU (`TRITON_INTERPRET=1`)."""
    from triton.runtime.jit import JITFunction

    return not isinstance(kernel, JITFunction)


def runs_on(kernel: Any, device: torch.device) -> bool:
    """Whether a kernel runs on a device: a GPU, or the CPU in Triton's interpreter."""
    return device.type == "cuda" or (device.type == "cpu" and is_interpreted(kernel))
