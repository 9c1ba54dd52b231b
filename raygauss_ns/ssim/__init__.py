"""Structural similarity (SSIM) of two images with its gradient, by `pytorch_msssim` or a Numba kernel."""

from raygauss_ns.ssim.api import structural_similarity

__all__ = ["structural_similarity"]
