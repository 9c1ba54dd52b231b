"""Ray marching and compositing on a CPU: Numba kernels."""
