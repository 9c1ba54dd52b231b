"""Differentiable splatting of 3D Gaussians, as viewers of splat files draw them, and the fit of such a file."""

from raygauss_ns.splatting.api import splat
from raygauss_ns.splatting.projection import Splats, SplatView

__all__ = ["SplatView", "Splats", "splat"]
