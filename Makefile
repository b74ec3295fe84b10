# Every target works on a fresh machine with Python 3.11 to 3.14, its venv, and make: the environment
# builds itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
MANIFEST ?= manifests/miniature.yaml
# Processes that run tests beside each other, each a file at a time, in the order of conftest.py.
# If a second process crashes, the run stops.
TESTERS ?= 2
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS)
PYTEST := $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 1

# Threads that spin while they wait can make two workers on two cores many times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup demo cluster quick test faults lint docs format clean clean-runs

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(VENV)/.extras ## Build the environment in .venv, with what tests and studies need

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "error: PYTHON: must be 3.11 to 3.14, as Ray is, got $$($(PYTHON) -V); try make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "error: PYTHON: must have ensurepip, got $(PYTHON) without it; try apt-get install python3-venv" >&2; exit 2; }
	@echo 'building $(VENV): up to 3 GB to download, of which most is PyTorch (README.md has a smaller one)'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.extras: $(VENV)/.installed
	$(INSTALL) -e '.[dev,pretrain,studies]'
	@touch $@

demo: $(VENV)/.installed ## Class names to what to ship on this machine, in minutes (MANIFEST=... for another run)
	$(BIN)/dfkd pipeline $(MANIFEST)

cluster: $(VENV)/.installed ## The same images on S3 and a cluster of three nodes, of which one dies half-way (needs Ceph)
	$(BIN)/python cluster/local.py $(MANIFEST)

quick: setup ## Fast tests, in some 90 seconds, for use while you edit
	$(PYTEST) -m 'not (heavy or faults or slow or s3 or azure or gpu)'

test: setup ## All tests but those of make faults
	$(PYTEST) -m 'not (faults or slow)'

faults: setup ## Whole runs, and tests that kill processes, nodes and storage
	$(PYTEST) -m 'faults or slow'

lint: setup ## Format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup ## API reference from the docstrings, in build/docs
	$(BIN)/python -W ignore::UserWarning -m pdoc -d google -o build/docs dfkd dfkd.api dfkd.errors \
	  $(patsubst dfkd/%/__init__.py,dfkd.%,$(wildcard dfkd/*/__init__.py))

format: setup ## Apply the formatter and the safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment, build products and caches; runs stay
	rm -rf $(VENV) build .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

clean-runs: ## Remove runs/: data sets, students and results
	rm -rf runs
