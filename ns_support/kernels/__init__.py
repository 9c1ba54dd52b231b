"""Vector types and utilities of the Numba and Triton kernels. Depends on torch, numpy, Numba and Triton."""
