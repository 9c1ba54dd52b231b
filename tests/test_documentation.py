"""What the documentation shows works: examples in docstrings give what stands below them, and links lead somewhere."""

import doctest
import importlib
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("raygauss_ns", "hardmine_ns", "ns_support")
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if ">>>" in path.read_text()
)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH_IN_TEXT = re.compile(r"`((?:raygauss_ns|hardmine_ns|ns_support|benchmarks|examples|tests)/[\w./]*)`")


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_give_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0 or "doctest: +SKIP" in Path(importlib.import_module(name).__file__).read_text()
    assert result.failed == 0


@pytest.mark.parametrize(
    "page", ["api.md", *sorted(str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/reference/*.md"))]
)
def test_examples_of_the_python_interface(page, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with torch.random.fork_rng():
        result = doctest.testfile(
            str(ROOT / "docs" / page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
        )
    assert result.attempted >= (40 if page == "api.md" else 8)
    assert result.failed == 0


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/reference/*.md")), ids=lambda page: page.stem)
def test_the_reference_names_what_exists(page):
    names = re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
    assert names
    for module, _, name in (name.rpartition(".") for name in names):
        thing = getattr(importlib.import_module(module), name)
        assert thing.__module__ == module
        assert thing.__doc__


def pages_in(navigation):
    """The pages of mkdocs.yml's `nav`, or of a part of it."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in pages_in(part)]


def test_every_page_is_in_the_sites_navigation_once():
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    left_out = tuple(site["exclude_docs"].split())
    pages = [str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")]
    expected = ["index.md", "CONTRIBUTING.md", "CHANGELOG.md"]  # docs/site/hooks.py makes them
    expected += [page for page in pages if not page.startswith(left_out)]
    assert sorted(pages_in(site["nav"])) == sorted(expected)


def test_git_ignores_no_source():
    """A rule meant for what is built once kept the site's hooks out of the repository."""
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    folders = [*PACKAGES, "benchmarks", "examples", "tests", "docs"]
    sources = [
        *site["hooks"],
        *(str(path.relative_to(ROOT)) for name in folders for path in (ROOT / name).rglob("*.py")),
    ]
    assert all((ROOT / name).is_file() for name in sources)
    ignored = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=ROOT,
        input="\n".join(sources),
        capture_output=True,
        text=True,
        check=False,
    )
    if ignored.returncode == 128:
        pytest.skip("not a git repository")
    assert ignored.stdout == ""


def test_example_in_the_readme_renders_an_image():
    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    with torch.random.fork_rng():
        exec(example, names)
    image = names["image"]
    assert image.shape == (240, 320, 3)
    # Black where rays miss the Gaussians, and grey where they don't.
    assert image[0, 0].max() == 0
    assert image.max() > 0.1


def anchors(page):
    """The names by which GitHub lets one link to a page's headings."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for target in LINK.findall(text):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target
    for name in PATH_IN_TEXT.findall(text):
        assert (ROOT / name).exists(), name


def test_links_are_looked_at(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A heading: `code`\n[x](#a-heading-code) `raygauss_ns/method.py`")
    assert anchors(page) == {"a-heading-code"}
    assert LINK.findall(page.read_text()) == ["#a-heading-code"]
    assert PATH_IN_TEXT.findall(page.read_text()) == ["raygauss_ns/method.py"]


def test_every_module_that_docstrings_and_comments_name_exists():
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode != 0:
        pytest.skip("not a git repository")
    for name in files.stdout.split():
        for mentioned in PATH_IN_TEXT.findall((ROOT / name).read_text()):
            assert (ROOT / mentioned).exists(), f"{name} names {mentioned}"
