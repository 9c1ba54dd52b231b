"""Structural similarity (SSIM) of two images with its gradient, by Numba, Triton or `pytorch_msssim`."""

from raygauss_ns.ssim.api import mixed_difference, structural_similarity

__all__ = ["mixed_difference", "structural_similarity"]
