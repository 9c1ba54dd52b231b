import hashlib
import os
import tempfile
from pathlib import Path

import pytest
import torch


def _kernel_cache() -> Path:
    """A folder for Numba's compiled kernels that changes with the kernels' sources.

    Numba recompiles a function when its own file changes, not when a file that it calls into does: without this, an
    edit of `simd.py` would be tested against kernels of yesterday.
    """
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in ("raygauss_ns", "hardmine_ns", "ns_support"):
        for path in sorted((root / package).rglob("*.py")):
            source = path.read_bytes()
            if b"from numba" in source:
                digest.update(str(path).encode() + source)
    return Path(tempfile.gettempdir()) / f"numba-of-tests-{digest.hexdigest()[:16]}"


# Before anything imports Numba, which reads this once.
os.environ["NUMBA_CACHE_DIR"] = str(_kernel_cache())


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Uninitialised floating-point tensors hold NaN, so that reading one by mistake shows.

    Not `numpy.empty`: Numba knows that function by its identity and compiles on first use, inside a test.
    """

    def poisoned(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point():
                tensor.detach().fill_(torch.nan)  # detached: a leaf that requires gradients refuses to be written to
            return tensor

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
