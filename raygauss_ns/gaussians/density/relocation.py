"""Relocation: a fixed number of Gaussians, of which those that show nothing move to where the image is worst.

Like 3DGS-MCMC (Kheradmand et al. 2024), with what is different for densities that add up. A round

1. removes the Gaussians that absorb hardly any light (opacity 1 - exp(-tau) < 0.005, `optics`);
2. draws as many others as make up for them and for the growth of the set, without replacement and with a probability
   in proportion to the mean |dL/dmu| that `DensityControl` measures;
3. divides each of these in two along its longest axis.

A Gaussian of scale s along that axis becomes two at mu +- a s with scale b s, a^2 + b^2 = 1, and 1 / (2 b) of the
density: mass, mean and covariance stay the same. (Clones in one place would leave the field exactly as it is, but would
get the same gradient for ever; the published halves, shrunk by 1.6 at half the density, keep a quarter of the mass.)
"""

from __future__ import annotations

import math

import torch
from gsplat.strategy.ops import duplicate
from gsplat.utils import normalized_quat_to_rotmat
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

FAINT = 0.005
"""Opacity below which a Gaussian is removed, as in 3DGS-MCMC."""
SHIFT = 0.85
"""a: distance of the halves from their common mean, in standard deviations."""


def moments(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """What an optimiser remembers of each row of a parameter, in tensors of its shape; not the number of steps."""
    state = optimizer.state.get(parameter, {})
    return [value for value in state.values() if isinstance(value, Tensor) and value.shape == parameter.shape]


def weighted_choice(weights: Tensor, count: int, seed: int) -> Tensor:
    """[N] bool: `count` of N elements, drawn without replacement by weights [N] >= 0 (Efraimidis and Spirakis 2006).

    The draw depends on the seed alone: the generators' state stays as it is.
    """
    drawn = torch.rand(len(weights), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # log(u) / w, largest first. Weights of 0 come last, in any order.
    keys = drawn.clamp_min(1e-300).log().to(weights.device) / weights.double().clamp_min(1e-30)
    chosen = torch.zeros(len(weights), dtype=torch.bool, device=weights.device)
    chosen[torch.topk(keys, count).indices] = True
    return chosen


@torch.no_grad()
def divide(params: nn.ParameterDict, optimizers: dict[str, Optimizer], chosen: Tensor) -> None:
    """Divide Gaussians in two along their longest axes. One half stays in its row, the others are appended.

    Args:
        params: the parameters of `GaussianCloud`; replaced by larger ones.
        optimizers: an optimiser for each of them; both halves start without momentum.
        chosen: [N] bool.
    """
    first = chosen.nonzero()[:, 0]
    second = torch.arange(len(first), device=first.device) + len(chosen)
    duplicate(params, optimizers, {}, chosen)
    scales, each = params["scales"][first], torch.arange(len(first), device=first.device)
    longest = scales.argmax(-1)
    axes = normalized_quat_to_rotmat(normalize(params["quats"][first], dim=-1))[each, :, longest]
    shift = SHIFT * scales[each, longest].exp()[:, None] * axes
    shrunk = math.sqrt(1 - SHIFT**2)
    scales[each, longest] += math.log(shrunk)
    for rows, sign in ((first, 1.0), (second, -1.0)):
        params["means"][rows] += sign * shift
        params["scales"][rows] = scales
        params["densities"][rows] *= 0.5 / shrunk
    for name, parameter in params.items():
        for moment in moments(optimizers[name], parameter):
            moment[first] = 0
