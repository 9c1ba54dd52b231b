"""The folders of the tests' own compiled kernels: stale ones would be tested in place of the source as it is."""

from pathlib import Path

import numba_cache
from numba_cache import ROOT, imported_files

from raygauss_ns.casting.cpu import march
from raygauss_ns.ssim import cpu as ssim


def names(module):
    return {str(path.relative_to(ROOT)) for path in imported_files(Path(module.__file__))}


def test_a_kernel_depends_on_all_that_its_module_imports():
    assert {"raygauss_ns/casting/cpu/march.py", "ns_support/kernels/simd.py"} <= names(march)
    from raygauss_ns.casting.cpu import march_growing

    assert "raygauss_ns/casting/steps.py" in names(march_growing)  # plain functions that its kernels call


def test_an_edit_of_one_kernel_leaves_the_others():
    assert "raygauss_ns/ssim/cpu.py" not in names(march)
    assert not any(name.startswith("raygauss_ns/casting") for name in names(ssim))


def test_an_edit_names_another_folder(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("x = 1\n")
    before = numba_cache.digest([path])
    path.write_text("x = 1  # a word\n")
    assert numba_cache.digest([path]) != before


def test_numba_keeps_kernels_there():
    dispatchers = [value for value in vars(march).values() if hasattr(value, "_cache_path") or hasattr(value, "stats")]
    kernels = [value for value in dispatchers if value.py_func.__module__ == march.__name__]
    expected = f"march-{numba_cache.digest(imported_files(Path(march.__file__)))}"
    cached = {Path(kernel.stats.cache_path).name for kernel in kernels if kernel.stats.cache_path}
    assert cached == {expected}
