"""What lies behind the Gaussians: one colour, a random one, or a colour for each direction that is learnt."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from nerfstudio.model_components import renderers
from torch import Tensor, nn

from ns_support.kernels.constants import constant
from raygauss_ns.color.harmonics import SH_BASES, SH_DEGREE, sh_basis

BackgroundColor: TypeAlias = Literal["white", "black", "random", "learned"]


class Background(nn.Module):
    """The colour at infinity.

    "learned" is sigmoid(sum_i k_i Y_i(d)), Y the spherical harmonics up to degree 2: sky, haze and far walls, which a
    capture's Gaussians need not then stand in for. It starts as grey.

    Args:
        kind: where the colour comes from.
    """

    def __init__(self, kind: BackgroundColor) -> None:
        super().__init__()
        self.kind = kind
        if kind == "learned":
            self.coefficients = nn.Parameter(torch.zeros(SH_BASES, 3))

    @property
    def belongs_to_photographs(self) -> bool:
        """Whether it is a part of what was photographed, and not laid under it."""
        return self.kind == "learned" and renderers.BACKGROUND_COLOR_OVERRIDE is None

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The group "background", if there is anything to train."""
        return {"background": [self.coefficients]} if self.kind == "learned" else {}

    def forward(self, directions: Tensor, generator: torch.Generator) -> Tensor:
        """Colours [R, 3] behind R rays.

        Args:
            directions: [R, 3] of unit length.
            generator: draws the colour of this image in training, where it is random.
        """
        if renderers.BACKGROUND_COLOR_OVERRIDE is not None:
            return renderers.BACKGROUND_COLOR_OVERRIDE.to(directions).expand_as(directions)
        if self.kind == "learned":
            return torch.sigmoid(sh_basis(directions, SH_DEGREE) @ self.coefficients)
        color = [float(self.kind == "white")] * 3
        if self.kind == "random" and self.training:
            color = torch.rand(3, generator=generator).tolist()
        if directions.is_cuda and color[0] == color[1] == color[2]:
            return constant(color[0], directions.device).to(directions.dtype).expand_as(directions)
        # Written where it is needed: for a copy from the host to a GPU, the host would wait.
        return torch.cat([directions.new_full((1,), value) for value in color]).expand_as(directions)
