"""Let torch load nerfstudio's checkpoints again.

Since torch 2.6 `torch.load` refuses whatever is not known to be harmless. nerfstudio's stock schedulers write NumPy
scalars (learning rates) into every checkpoint, so `ns-eval`, `ns-viewer`, `ns-render`, `ns-export` and resuming all
fail. `allow_numpy_scalars` allows NumPy's scalars, and only those, for the whole process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_SCALAR_TYPES = ("float64", "float32", "int64", "int32", "bool")


def numpy_scalar_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Everything that the pickle of a NumPy scalar names, in the form `torch.serialization.add_safe_globals` takes."""
    # Asked from NumPy itself: the module that holds this function was renamed in NumPy 2.
    scalar: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
    return [
        # Under both names, so that a checkpoint written with one NumPy loads with the other.
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(name)) for name in _SCALAR_TYPES),
    ]


def allow_numpy_scalars() -> None:
    """Allow NumPy scalars in `torch.load(weights_only=True)`; does nothing before torch 2.6, where no one asks."""
    if torch.__version__ >= "2.6":
        torch.serialization.add_safe_globals(numpy_scalar_globals())
