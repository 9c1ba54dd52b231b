"""Marching and compositing on a GPU: Triton kernels and what launches them."""
