"""Vector types, and what Numba and Triton kernels of all packages need. Stands on torch, numpy, Numba and Triton."""
