"""The caster on a GPU: Triton kernels. Nothing outside this folder imports them before a tensor is on a GPU."""
