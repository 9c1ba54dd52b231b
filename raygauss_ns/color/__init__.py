"""Colour of a Gaussian as seen from a direction: spherical harmonics and spherical Gaussians."""

from raygauss_ns.color.api import view_colors
from raygauss_ns.color.reference import ColorBasis, colors_reference

__all__ = ["ColorBasis", "colors_reference", "view_colors"]
