# Everything a fresh machine needs: `make demo` shows the main job, `make test` proves the code.
# Each target first builds its own virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.base: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed: apt-get install python3 python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	$(PIP) torch
	$(PIP) -e '.[train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/.base  ## Train a tokenizer and a LatentLM on handwritten digits, sample, score (2.5 minutes of work on 2 cores)
	$(BIN)/latentlm demo --out runs/demo

test: $(VENV)/.dev lint  ## Lint, type-check and run the tests (no GPU, no network)
	$(BIN)/python -m pytest -n auto -m "not slow and not gpu and not network" --jaxtyping-packages=latentlm,beartype.beartype

test-slow: $(VENV)/.dev  ## The long checks: kills at random moments, statistics over many samples
	$(BIN)/python -m pytest -m "slow and not gpu and not network"

lint: $(VENV)/.dev  ## ruff and pyright
	$(BIN)/ruff check src tests examples
	$(BIN)/ruff format --check src tests examples
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff check --fix src tests examples
	$(BIN)/ruff format src tests examples

clean:  ## Remove caches and runs (keeps .venv)
	rm -rf runs .pytest_cache .ruff_cache .hypothesis
