"""Structural similarity (SSIM) of two images with its gradient, by Numba, Triton or `pytorch_msssim`."""

from raygauss_ns.ssim.api import structural_similarity

__all__ = ["structural_similarity"]
