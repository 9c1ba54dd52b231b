"""Who may import whom: the picture in CONTRIBUTING.md, enforced by reading the sources."""

import ast
import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("raygauss_ns", "hardmine_ns", "ns_support")

# A folder may import itself, its own package's folders named here, and the folders of `ns_support` named here.
# "face" is the top level of `raygauss_ns` and `hardmine_ns`, "top" that of `ns_support`. The faces may import anything
# but each other's package.
MAY_IMPORT = {
    "raygauss_ns.casting": {"ns_support.concurrency", "ns_support.kernels", "ns_support.errors"},
    "raygauss_ns.color": {"ns_support.concurrency", "ns_support.kernels", "ns_support.errors"},
    "raygauss_ns.ssim": {"ns_support.concurrency", "ns_support.kernels", "ns_support.errors"},
    "raygauss_ns.gaussians": {"raygauss_ns.casting", "raygauss_ns.color", "raygauss_ns.ssim", "ns_support"},
    "raygauss_ns.splatting": {
        "raygauss_ns.casting",
        "raygauss_ns.color",
        "raygauss_ns.ssim",
        "raygauss_ns.gaussians",
        "ns_support",
    },
    "hardmine_ns.hash_encoding": {"ns_support.concurrency", "ns_support.kernels", "ns_support.errors"},
    "hardmine_ns.marching": {"ns_support.concurrency", "ns_support.kernels", "ns_support.errors"},
    "hardmine_ns.mining": {
        "ns_support.concurrency",
        "ns_support.kernels",
        "ns_support.sampling",
        "ns_support.errors",
    },
    "hardmine_ns.rendering": {"hardmine_ns.hash_encoding", "hardmine_ns.marching", "hardmine_ns.mining", "ns_support"},
    "ns_support.adam": {"ns_support.kernels", "ns_support.errors"},
    "ns_support.kernels": {"ns_support.errors"},
    "ns_support.sampling": {"ns_support.concurrency", "ns_support.kernels", "ns_support.errors"},
    "ns_support.lenses": {"ns_support.errors"},
    "ns_support.concurrency": {"ns_support.errors"},
}
WITHOUT_NERFSTUDIO = tuple(MAY_IMPORT)
TRITON = ("*.gpu", "*.gpu.*", "ns_support.kernels.triton_types", "ns_support.kernels.backend")
NUMBA = ("*.cpu", "*.cpu.*", "ns_support.kernels.*", "hardmine_ns.hash_encoding.optimizer")
CIRCLES = (frozenset({"raygauss_ns.config", "raygauss_ns.model"}),)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imports(source: str, module: str, is_package: bool = False) -> set[tuple[str, bool]]:
    """What a source imports (modules, and names from modules), and whether that happens when it is imported itself."""
    tree = ast.parse(source)
    deferred = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if typing_only or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            deferred |= {id(inner) for part in node.body for inner in ast.walk(part)}
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        found |= {(name, id(node) not in deferred) for name in names}
    return found


def broken(module: str, source: str, is_package: bool = False) -> list[str]:
    """The rules that a module's imports break, one sentence each."""
    found = []
    folder = next((name for name in MAY_IMPORT if within(module, name)), None)
    for name, at_import in sorted(imports(source, module, is_package)):
        root = name.split(".")[0]
        if root == "triton" and not any(fnmatch.fnmatch(module, pattern) for pattern in TRITON):
            found.append(f"{module} imports {name}: only gpu modules do")
        if root == "numba" and at_import and not any(fnmatch.fnmatch(module, pattern) for pattern in NUMBA):
            found.append(f"{module} imports {name} at module level: only cpu modules do")
        if root == "nerfstudio" and folder in WITHOUT_NERFSTUDIO:
            found.append(f"{module} imports {name}: {folder} knows no nerfstudio")
        other = {"raygauss_ns": "hardmine_ns", "hardmine_ns": "raygauss_ns"}.get(module.split(".")[0])
        if root == other or (within(module, "ns_support") and root in ("raygauss_ns", "hardmine_ns")):
            found.append(f"{module} imports {name}: another package")
        elif (
            folder and root in PACKAGES and not any(within(name, allowed) for allowed in {folder, *MAY_IMPORT[folder]})
        ):
            found.append(f"{module} imports {name}: not below {folder}")
    return found


@cache
def sources() -> dict[str, tuple[str, bool]]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = (path.read_text(), path.name == "__init__.py")
    return found


def circles(modules: dict[str, tuple[str, bool]]) -> set[frozenset[str]]:
    """The sets of modules that import one another at module level, directly or through others."""
    graph: dict[str, set[str]] = {}
    for module, (source, package) in modules.items():
        named = {name for name, at_import in imports(source, module, package) if at_import}
        # `from package import name` needs the package's own `__init__` only where the name is no module in it.
        needed = {name if name in modules else name.rpartition(".")[0] for name in named}
        graph[module] = (needed & modules.keys()) - {module}
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        reach[start] = seen
    return {
        frozenset(other for other in graph if other in reach[name] and name in reach[other])
        for name in graph
        if name in reach[name]
    }


@pytest.mark.parametrize("module", sorted(sources()))
def test_imports_follow_the_picture(module):
    assert broken(module, *sources()[module]) == []


def test_no_import_circles():
    assert circles(sources()) - set(CIRCLES) == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("raygauss_ns.model", "import hardmine_ns.mining"),
        ("hardmine_ns.model", "def f():\n    from raygauss_ns.casting import cast"),
        ("ns_support.trainer", "from raygauss_ns import model"),
        ("ns_support.kernels.made_up", "from nerfstudio.utils import colormaps"),
        ("raygauss_ns.casting.cpu.made_up", "import nerfstudio"),
        ("raygauss_ns.casting.api", "import triton.language as tl"),
        ("raygauss_ns.casting.api", "import numba"),
        ("raygauss_ns.casting.api", "from raygauss_ns.gaussians import cloud"),
        ("hardmine_ns.marching.rays", "from ns_support.runs import progress"),
    ],
)
def test_a_broken_rule_is_found(module, source):
    assert broken(module, source) != []


def test_what_is_allowed_is_not_reported():
    assert broken("raygauss_ns.casting.gpu.made_up", "import triton\nfrom ns_support.kernels import backend") == []
    assert broken("raygauss_ns.color.cpu", "import numba") == []
    assert broken("raygauss_ns.model", "import nerfstudio\nfrom raygauss_ns.casting import cast") == []


def test_a_circle_is_found():
    modules = {
        "a": ("import b", False),
        "b": ("import c", False),
        "c": ("from a import x", False),
        "d": ("import a", False),
    }
    assert circles(modules) == {frozenset("abc")}
    modules["c"] = ("def f():\n    import a", False)
    assert circles(modules) == set()
