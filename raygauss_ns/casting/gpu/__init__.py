"""The caster on a GPU: Triton kernels. Nothing outside of this folder imports them before a tensor asks for a GPU."""
