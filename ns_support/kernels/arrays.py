"""NumPy arrays as Numba kernels take them, and tensors as such arrays."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import ns_support.kernels.compiling  # noqa: F401 - acts on import, before a kernel is declared

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int32]
IndexArray: TypeAlias = npt.NDArray[np.int64]


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """The values of a tensor on the host, row by row; shares memory where that is how they lie already."""
    return tensor.detach().contiguous().numpy()


def float_array(tensor: Tensor) -> FloatArray:
    """As `as_array`, of a tensor of any precision on any device, in float32."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()
