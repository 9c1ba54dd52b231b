"""What a user gets from the wheel: every package of the repository, and nothing beside them."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("raygauss_ns", "hardmine_ns", "ns_support")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The files in the wheel, built from a copy since setuptools leaves folders behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in (*PACKAGES, "tests", "benchmarks", "examples", "docs"):
        unneeded = ["__pycache__", "*.png"] if folder in PACKAGES else ["__pycache__", "*.png", "data"]
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns(*unneeded))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        target,
        source,
    ]
    subprocess.run(command, check=True)
    (wheel,) = target.glob("*.whl")
    assert wheel.stat().st_size < 1_000_000
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_module_is_in_the_wheel(names):
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert modules <= names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_nothing_else_is(names):
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
