"""The hash encoding and its optimiser on a GPU: Triton kernels and what launches them."""
