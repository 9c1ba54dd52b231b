"""The caster on a CPU: Numba kernels that march 16 rays at a time."""
