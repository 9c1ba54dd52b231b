"""Let torch load nerfstudio's checkpoints again.

Since torch 2.6 `torch.load` refuses everything that is not known to be safe. nerfstudio's own schedulers write NumPy
scalars (learning rates) into every checkpoint, so `ns-eval`, `ns-viewer`, `ns-render`, `ns-export` and resuming all
fail. `allow_numpy_scalars` allows NumPy scalars, and nothing else, for the whole process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_SCALAR_TYPES = ("float64", "float32", "int64", "int32", "bool")


def numpy_scalar_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Everything that the pickle of a NumPy scalar refers to, as `torch.serialization.add_safe_globals` takes it."""
    # Obtained from NumPy itself: the module of this function was renamed in NumPy 2.
    scalar: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
    return [
        # Under both names, so that a checkpoint written with one NumPy version loads with the other.
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(name)) for name in _SCALAR_TYPES),
    ]


def allow_numpy_scalars() -> None:
    """Allow NumPy scalars in `torch.load(weights_only=True)`, which is the default from torch 2.6 on."""
    if torch.__version__ >= (2, 6):  # type: ignore[operator]  # a TorchVersion, which compares with tuples
        torch.serialization.add_safe_globals(numpy_scalar_globals())
