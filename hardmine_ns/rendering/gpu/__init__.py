"""The visibility pass on a GPU, in kernels of Triton: no size of it is known to the host."""
