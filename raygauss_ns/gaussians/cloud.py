"""The set of Gaussians: what is trained, how raw parameters become physical ones, where they start, how they resize."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from raygauss_ns.casting.types import Gaussians
from raygauss_ns.color.harmonics import SH_DEGREE, rgb_to_sh_base
from raygauss_ns.color.reference import ColorBasis
from raygauss_ns.gaussians.initialization import StartPoints, neighbor_distances


class GaussianCloud(nn.Module):
    """N Gaussians as trainable parameters, one `nn.Parameter` a kind so that each has a learning rate of its own.

    `params` holds, with N rows each:

    - `means` [N, 3], mu (scene units);
    - `scales` [N, 3], log s (log of scene units);
    - `quats` [N, 4], rotation, w first, of any length;
    - `densities` [N], peak density times `unit` (dimensionless), so that its learning rate and the threshold eps
      mean the same in a scene of any size; negative values count as 0;
    - `sh_base` [N, 3], `sh_rest` [N, B, 3], `sg_amplitudes` [N, L, 3], `sg_sharpness` [N, L] and `sg_axes` [N, L, 3],
      the colour as in `ColorBasis`; B = (sh_degree + 1)^2 - 1, L = num_lobes.

    Loading a state with another number of rows resizes the parameters in place, so that an optimiser that already holds
    them loads its state too.

    Args:
        start: positions and colours.
        unit: scene scale u (scene units).
        density: peak density at the start, per unit of length.
        scale: scales at the start, in `neighbor_distances`.
        sh_degree: highest degree of the colour's spherical harmonics.
        num_lobes: L, number of the colour's spherical Gaussians; they start without amplitude and with random axes.
    """

    def __init__(
        self,
        start: StartPoints,
        unit: float,
        density: float,
        scale: float = 1.0,
        sh_degree: int = SH_DEGREE,
        num_lobes: int = 7,
    ) -> None:
        super().__init__()
        positions = start.positions.float()
        n = len(positions)
        colors = torch.full((n, 3), 0.5) if start.colors is None else start.colors.float()
        self.unit = unit
        self.loaded = False
        """Whether a stored state has replaced what the Gaussians started as."""
        self._of_image: Mapping[str, Tensor] | None = None
        self.params = nn.ParameterDict(
            {
                "means": positions.clone(),
                "scales": torch.log(scale * neighbor_distances(positions, unit))[:, None].repeat(1, 3),
                "quats": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
                "densities": torch.full((n,), density),
                "sh_base": rgb_to_sh_base(colors),
                "sh_rest": torch.zeros(n, (sh_degree + 1) ** 2 - 1, 3),
                "sg_amplitudes": torch.zeros(n, num_lobes, 3),
                "sg_sharpness": torch.zeros(n, num_lobes),
                "sg_axes": torch.randn(n, num_lobes, 3),
            }
        )

    def __len__(self) -> int:
        return len(self.params["means"])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters to differentiate through: `params`, or inside `one_image()` per-image views of them."""
        return dict(self.params.items()) if self._of_image is None else self._of_image

    @contextmanager
    def one_image(self) -> Iterator[None]:
        """What is computed from `tensors` in here has its gradient summed before it joins that of other images.

        Autograd adds up what a parameter's uses contribute in any order: of two images, parts of one may come between
        parts of the other. The sum of each image's own gradient is the same wherever the others are rendered.
        """
        self._of_image = {name: parameter.view_as(parameter) for name, parameter in self.params.items()}
        try:
            yield
        finally:
            self._of_image = None

    def gaussians(self) -> Gaussians:
        """The Gaussians as the caster takes them, in scene units; differentiable."""
        p = self.tensors
        return Gaussians(p["means"], p["scales"].exp(), p["quats"], p["densities"] / self.unit)

    def color_basis(self) -> ColorBasis:
        """What the colours are computed from."""
        return ColorBasis(*(self.tensors[name] for name in ColorBasis._fields))

    @torch.no_grad()
    def recolored(self, matrix: Tensor, shift: Tensor) -> GaussianCloud:
        """A copy whose colours c are matrix c + shift, in every direction.

        Args:
            matrix: [3, 3].
            shift: [3].
        """
        copy = deepcopy(self)
        for name in ("sh_base", "sh_rest", "sg_amplitudes"):
            copy.params[name].copy_(self.params[name] @ matrix.T)
        # c = 0.5 + Y_0 k_0 + ...
        copy.params["sh_base"] += rgb_to_sh_base(matrix.sum(1) / 2 + shift)
        return copy

    def get_extra_state(self) -> Tensor:
        """The unit, in which densities are stored: a checkpoint without it could not be read."""
        return torch.tensor(self.unit, dtype=torch.float64, device=self.params["means"].device)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the unit of a stored state."""
        self.loaded, self.unit = True, float(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}scene_unit" in state_dict:  # as version 0.1.0 stored it
            state_dict[f"{prefix}_extra_state"] = state_dict.pop(f"{prefix}scene_unit")
        means = state_dict.get(f"{prefix}params.means")
        if means is not None:
            for parameter in self.params.values():
                # Where anything but this number differs, PyTorch says so.
                parameter.data = parameter.data.new_zeros(len(means), *parameter.shape[1:])
        super()._load_from_state_dict(state_dict, prefix, *args)
