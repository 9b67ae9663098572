# Everything is installed into .venv from loose ranges (pyproject.toml) at the pins of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One process of all tiers per core, at most four: a test on Ray waits for half of its time, and a unit test of the other
# process fills the gap, which two separate runs of the tiers did not once the shorter one had ended.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses=logical --maxprocesses=4
export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart test test-unit test-runs test-cluster test-thorough style benchmark clean help

help:          ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+): .*## /  make \1\t/' | expand -t 22

quickstart: $(VENV)/.quickstart ## install, then train, register, route, search and evaluate on real data
	$(VENV)/bin/ttmoe run quickstart

test: $(VENV)/.test ## install the test dependencies and run all tests (a quarter of an hour on two cores)
	$(PYTEST)

test-unit: $(VENV)/.test ## the tests that start no cluster (five minutes on two cores)
	$(PYTEST) tests/unit

test-runs: $(VENV)/.test ## the tests that start Ray, MLflow or whole commands
	$(PYTEST) tests/integration tests/e2e

test-cluster: $(VENV)/.test ## the tests on clusters of several nodes (Ray; and Slurm, if it is installed)
	$(PYTEST) tests/cluster

test-thorough: $(VENV)/.test ## all tests, with a crash at every step (half an hour)
	$(PYTEST) --thorough

style: $(VENV)/.style ## format, lint and type checks
	$(VENV)/bin/ruff check . && $(VENV)/bin/mypy

benchmark: $(VENV)/.benchmark ## measure against peers and write tests/benchmarks/RESULTS.md
	$(VENV)/bin/python -m tests.benchmarks

clean:         ## remove the environment; runs/ stays
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) -e '.[quickstart]' && touch $@

$(VENV)/.test $(VENV)/.style $(VENV)/.benchmark: $(VENV)/.%: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) -e '.[quickstart,$*]' && touch $@
