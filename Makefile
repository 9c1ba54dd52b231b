# Every target sets up its own virtual environment when it is missing: Python, git and make are all it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Two processes, each with whole files of tests: most tests keep one core busy.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-verbose test-slow lint format docs dist clean

$(VENV)/.installed: pyproject.toml
	@echo "Setting up $(VENV): nerfstudio and PyTorch are up to 8 GB, which takes some minutes. README.md has a leaner way."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# Tools that do not import the packages, each group in a small environment of its own.
$(VENV)-%/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-$*/bin/python -m pip install --quiet --group $*
	@touch $@

demo: $(VENV)/.installed  ## train, evaluate and picture `raygauss` on a self-made scene
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python examples/demo.py

test: $(VENV)/.installed-dev  ## the tests
	$(PYTEST) -m "not slow"

test-verbose: $(VENV)/.installed-dev  ## the tests by name, and which take longest
	$(PYTEST) -m "not slow" --verbose --durations=50

test-slow: $(VENV)/.installed-dev  ## the minutes-long checks, one after another: several use both cores
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev  ## ruff (lint and format) and mypy, strict on the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## let ruff rewrite what `make lint` complains about
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)-docs/.installed  ## the documentation as a web site, in site/
	$(VENV)-docs/bin/python -m mkdocs build --strict

dist: $(VENV)-dist/.installed  ## the wheel and the source archive, in dist/
	rm -rf dist build
	$(VENV)-dist/bin/python -m build
	$(VENV)-dist/bin/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) $(VENV)-docs $(VENV)-dist
