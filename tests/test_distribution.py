"""What a user gets: every package of the repository and nothing beside them, under a version that git's tags give."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools_scm
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("raygauss_ns", "hardmine_ns", "ns_support")
PIP = (sys.executable, "-m", "pip")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy since setuptools leaves folders behind; the copy has no history."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in (*PACKAGES, "tests", "benchmarks", "examples", "docs"):
        unneeded = ["__pycache__", "*.png"] if folder in PACKAGES else ["__pycache__", "*.png", "data"]
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns(*unneeded))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", target, source]
    subprocess.run(command, check=True)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def names(wheel):
    """The files in the wheel."""
    assert wheel.stat().st_size < 1_000_000
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_module_is_in_the_wheel(names):
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert modules <= names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_nothing_else_is(names):
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)


def test_sources_without_a_history_have_the_version_that_pyproject_names(wheel):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"-{settings['tool']['setuptools_scm']['fallback_version']}-" in wheel.name


def version_of(folder):
    settings = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["setuptools_scm"]
    return setuptools_scm.get_version(root=str(folder), fallback_root=str(folder), **settings)


@pytest.fixture
def repository(tmp_path):
    """A repository with this one's settings and one commit; `git(*words)` runs git in it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for file in ("pyproject.toml", ".git_archival.txt", ".gitattributes"):
        shutil.copy(ROOT / file, folder)

    def git(*words):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, check=True).stdout

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    return folder, git


def test_versions_come_from_tags(repository, tmp_path):
    folder, git = repository
    assert re.fullmatch(r"0\.1\.dev1\+g\w+", version_of(folder))  # a clone without tags
    git("tag", "v1.2.3")
    assert version_of(folder) == "1.2.3"

    archive = tmp_path / "archive"
    (tmp_path / "archive.tar").write_bytes(git("archive", "HEAD"))
    with tarfile.open(tmp_path / "archive.tar") as file:
        file.extractall(archive)
    assert version_of(archive) == "1.2.3"

    git("commit", "--quiet", "--allow-empty", "--message", "two")
    assert re.fullmatch(r"1\.2\.4\.dev1\+g\w+", version_of(folder))


def test_the_tag_that_a_release_needs_is_the_one_that_its_workflow_waits_for():
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert release[True]["push"]["tags"] == ["v*"]  # YAML reads the key `on` as true
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}


def test_workflows_call_what_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        assert set().union(*(job.get("needs", "").split() for job in jobs.values())) <= set(jobs)
        commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
        assert set(re.findall(r"\bmake ([\w-]+)", commands)) <= targets
        for name in re.findall(r"(?:tests|examples|benchmarks)/[\w./]*", commands):
            assert (ROOT / name).exists(), name


def test_python_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [line.rsplit(" ", 1)[1] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == named
    first, last = int(named[0].split(".")[1]), int(named[-1].split(".")[1])
    assert project["requires-python"] == f">=3.{first},<3.{last + 1}"
    assert f"3.{first} to 3.{last}" in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_installed_wheel_adds_its_methods_to_nerfstudio(wheel, tmp_path):
    """In an environment of its own, which sees the dependencies of this one but not its installation in place."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = next(environment / name for name in ("bin/python", "Scripts/python.exe") if (environment / name).exists())
    (packages,) = {Path(path) for path in environment.rglob("site-packages")}
    (packages / "dependencies.pth").write_text(str(Path(yaml.__file__).parents[1]))
    install = [*PIP, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)

    lines = (
        "import sys, ns_support, nerfstudio.scripts.train as train",
        "print(ns_support.__file__)",
        "sys.argv = ['ns-train', '--help']",
        "train.entrypoint()",
    )
    done = subprocess.run(
        [python, "-E", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(packages))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    methods = set(project["entry-points"]["nerfstudio.method_configs"])
    assert methods <= set(re.findall(r"[\w-]+", done.stdout))
