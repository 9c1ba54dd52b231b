"""The caster on a CPU: Numba kernels that march packets of 16 rays."""
