"""In which order the Gaussians lie in memory: along a Z-order curve, as RayGaussX keeps them (arXiv 2509.07782).

Neighbours in space become neighbours in memory, so that what is read for one is often there for the next. No value
changes, and neither does anything that training decides, but for the order in which floats are added up and the one
in which random numbers fall to Gaussians that split.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raygauss_ns.casting.morton import morton_codes
from raygauss_ns.gaussians.densification import DensityControl


@torch.no_grad()
def reorder(
    params: nn.ParameterDict, optimizers: dict[str, Optimizer], control: DensityControl | None = None
) -> Tensor:
    """Sort the Gaussians by the Morton codes of their means, in place; equal codes keep their order.

    The parameters stay the same tensors; their gradients, the optimisers' moments and density control's statistic move
    along. The order depends on the means alone: a resumed training finds the one that it was stopped with.

    Args:
        params: the parameters of `GaussianCloud`, N rows each.
        optimizers: an optimiser for some or each of them, by name.
        control: whose statistic is moved along.

    Returns:
        [N] int64: where each Gaussian was before.
    """
    means = params["means"]
    order = torch.argsort(morton_codes(means), stable=True)
    for name, parameter in params.items():
        moved = [parameter] if parameter.grad is None else [parameter, parameter.grad]
        if name in optimizers:
            state = optimizers[name].state.get(parameter, {})
            # The number of steps, a scalar, is the same for all.
            moved += [value for value in state.values() if isinstance(value, Tensor) and value.shape == parameter.shape]
        for tensor in moved:
            tensor.copy_(tensor[order])
    if control is not None:
        control.reorder(order)
    return order
