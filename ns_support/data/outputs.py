"""A parser's outputs for positions too large for float32, with a transform in double precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs, transform_poses_to_original_space
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class ExactOutputs(DataparserOutputs):
    """`DataparserOutputs` whose transform may be float64: it is saved and applied without rounding."""

    def transform_poses_to_original_space(
        self, poses: Tensor, camera_convention: Literal["opengl", "opencv"] = "opencv"
    ) -> Tensor:
        """Poses [N, 3, 4] of the scene in the coordinates of the data, in the transform's precision."""
        return transform_poses_to_original_space(
            poses.to(self.dataparser_transform), self.dataparser_transform, self.dataparser_scale, camera_convention
        )


def moved(transform: Tensor, offset: NDArray[np.float64]) -> Tensor:
    """The transform [3, 4] for original positions, given that for positions from which the offset [3] was subtracted.

    In float64 if there is an offset, otherwise unchanged.
    """
    if not offset.any():
        return transform
    exact = transform[:3].double().clone()
    exact[:, 3] -= exact[:, :3] @ torch.from_numpy(offset)
    return exact
