"""Where the tests keep Numba's compiled kernels: folders named by all source that a kernel can have been compiled from.

Numba recompiles a function when its own file changes, not when a file that it calls into does: without this, an edit
of `simd.py` would be tested against kernels of yesterday. A kernel compiles what its module imports, plain functions
and constants included, and what those modules import in turn. So each module's kernels are kept in a folder named by a
digest of these files: an edit recompiles the kernels of the modules that import the edited one, and no other.
"""

import ast
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("raygauss_ns", "hardmine_ns", "ns_support")
FOLDER = Path(tempfile.gettempdir())


def _file_of(module: str) -> Path | None:
    """The file of a module of ours; None for those of others and for what is no module."""
    path = ROOT.joinpath(*module.split("."))
    found = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in found if module.split(".")[0] in PACKAGES and file.is_file()), None)


def _imported_names(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it, and names of which some are modules."""
    parts = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                steps = alias.name.split(".")
                yield from (".".join(steps[:i]) for i in range(1, len(steps) + 1))
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(relative, ".".join(parts))
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


@cache
def imported_files(path: Path) -> frozenset[Path]:
    """The file itself and those of ours that it imports, directly or through others."""
    found, pending = {path}, [path]
    while pending:
        files = {_file_of(name) for name in _imported_names(pending.pop())} - {None} - found
        found |= files
        pending += files
    return frozenset(found)


def digest(files) -> str:
    """Of the files' contents and places; Numba keeps line numbers and paths with a kernel."""
    result = hashlib.sha256()
    for file in sorted(files):
        result.update(str(file).encode() + b"\0" + file.read_bytes())
    return result.hexdigest()[:16]


def install() -> None:
    """Have Numba keep kernels there, in this process and in those that tests start.

    A process that is no test's own knows only the one folder of `NUMBA_CACHE_DIR`: its name is a digest of all three
    packages. Numba must not have been imported yet.
    """
    every = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    os.environ["NUMBA_CACHE_DIR"] = str(FOLDER / f"numba-of-tests-{digest(every)}")
    from numba.core.caching import CacheImpl

    class ByImports(CacheImpl._locator_classes[0]):  # that of NUMBA_CACHE_DIR
        def __init__(self, py_func, py_file):
            super().__init__(py_func, py_file)
            path = Path(py_file).resolve()
            if path.is_relative_to(ROOT):
                folder = f"{path.stem}-{digest(imported_files(path))}"
                self._cache_path = str(FOLDER / "numba-of-tests" / folder)

    CacheImpl._locator_classes.insert(0, ByImports)
