"""Occupancy-grid ray marching and packed compositing, on a CPU or on CUDA.

The loops that run along a ray are Numba kernels on a CPU (`cpu/`) and Triton kernels on CUDA (`gpu/`). Each kernel has
a PyTorch version, the reference that it is tested against.

Example:
    >>> import torch
    >>> from hardmine_ns.marching import OccupancyGrid, composite, march_rays
    >>> grid = OccupancyGrid(torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]), resolution=32)
    >>> origins, directions = torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    >>> samples = march_rays(origins, directions, torch.tensor([0.0]), torch.tensor([10.0]), grid, step_size=0.01)
    >>> density, colors = torch.ones(len(samples)), torch.ones(len(samples), 3)
    >>> composite(density, colors, samples).accumulation  # 1 - exp(-2)
    tensor([0.8647])
"""

from hardmine_ns.marching.compositing import Composite, composite, visible_samples
from hardmine_ns.marching.hardness_map import HardnessMap
from hardmine_ns.marching.merging import merge_thin
from hardmine_ns.marching.occupancy import OccupancyGrid
from hardmine_ns.marching.rays import march_rays
from hardmine_ns.marching.samples import PackedSamples

__all__ = [
    "Composite",
    "HardnessMap",
    "OccupancyGrid",
    "PackedSamples",
    "composite",
    "march_rays",
    "merge_thin",
    "visible_samples",
]
