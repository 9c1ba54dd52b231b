"""What docs/nerfstudio gives to nerfstudio agrees with the methods that this package registers."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from nerfstudio.configs import external_methods

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/nerfstudio"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
METHODS = set(PROJECT["entry-points"]["nerfstudio.method_configs"])


@pytest.fixture
def entries(monkeypatch):
    monkeypatch.setattr(external_methods, "external_methods", [])
    runpy.run_path(str(FOLDER / "external_methods.py"))
    return external_methods.external_methods


def test_entries_name_all_methods_and_the_package(entries):
    configs, descriptions = external_methods.get_external_methods()
    assert set(configs) == set(descriptions) == METHODS
    assert {entry.pip_package for entry in entries} == {PROJECT["name"]}
    assert all(f"pip install {PROJECT['name']}" in entry.instructions for entry in entries)


def test_entries_lead_to_the_pages(entries):
    named = {re.search(r"methods/(\w+)\.html", entry.instructions)[1] for entry in entries}
    assert named == {path.stem for path in FOLDER.glob("*.md")} - {"README"}


def test_pages_name_all_methods():
    pages = "\n".join(path.read_text() for path in FOLDER.glob("*.md"))
    assert set(re.findall(r"^\| `([\w-]+)`", pages, re.MULTILINE)) == METHODS


def test_links_need_no_file_beside_the_pages():
    for name in ("raygauss.md", "instant_ngp_hardmine.md"):
        targets = re.findall(r"\]\(([^)]*)\)", (FOLDER / name).read_text())
        assert all(target.startswith("https://") for target in targets)
