"""A kernel that does next to nothing, to find out whether Triton can compile and launch any. Importing needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ns_support.kernels import triton_types as ty


@triton.jit
def probe_kernel(out: ty.Pointer) -> None:
    """Write 1."""
    tl.store(out, 1.0)


def launch(device: torch.device | str) -> None:
    """Compile and launch the kernel; raises whatever Triton raises."""
    probe_kernel[(1,)](torch.empty(1, device=device))
