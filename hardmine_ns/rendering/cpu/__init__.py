"""Numba kernels of the field on a CPU, without a graph."""
