"""The order of the Gaussians in memory: along a Z-order curve, as in RayGaussX (arXiv 2509.07782).

Neighbours in space become neighbours in memory, which improves the use of caches. No value changes, and training is the
same except for the order in which floats are added up and in which random numbers are assigned to split Gaussians.
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
    """Sort the Gaussians by the Morton codes of their means, in place and stably.

    The parameters stay the same tensors. Their gradients, the optimisers' moments and the densification statistic are
    reordered along with them. The order depends only on the means, so a resumed training has the same one.

    Args:
        params: the parameters of `GaussianCloud`, N rows each.
        optimizers: optimisers by the name of their parameter; some may be absent.
        control: its statistic is reordered as well.

    Returns:
        [N] int64: the previous index of each Gaussian.
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
