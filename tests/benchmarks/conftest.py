import importlib
import sys
from pathlib import Path

import pytest
from small_scenes import write_disc

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    """Imports a benchmark as running it would, by its name: `script("commands")`."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))
    for path in (*BENCHMARKS.iterdir(), *BENCHMARKS.glob("*/*.py")):
        name = ".".join(path.relative_to(BENCHMARKS).with_suffix("").parts)
        if name not in before:
            sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """A disc of 24 x 24 pixels, in Blender's format."""
    return write_disc(tmp_path_factory.mktemp("scene"))
