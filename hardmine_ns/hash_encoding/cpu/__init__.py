"""The hash encoding on a CPU: Numba kernels, and what splits their work over threads."""
