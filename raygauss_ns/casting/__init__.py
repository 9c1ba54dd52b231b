"""Volumetric ray casting of Gaussians: `cast` is the one public function, differentiable in Gaussians and colours.

`api` checks the inputs and chooses a back end: `reference` (PyTorch, the definition), `cpu` (Numba) or `gpu` (Triton).
Needs torch, numpy and numba; Triton on a GPU.
"""

from raygauss_ns.casting.api import Backend, cast
from raygauss_ns.casting.types import CastSettings, Gaussians, RayOutputs, Rays, whitening_matrices

__all__ = ["Backend", "CastSettings", "Gaussians", "RayOutputs", "Rays", "cast", "whitening_matrices"]
