# Everything is installed into .venv from loose ranges (pyproject.toml) at the pins of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Processes of all tiers, one more than cores (tests/tiers.py): a test on Ray waits for half of its time, and unit tests of
# the last process fill the gap, which two separate runs of the tiers did not once the shorter one had ended.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses=auto
export HF_HUB_OFFLINE ?= 1
# The container engine: the first that answers; a docker without its daemon does not.
ENGINE = $(firstword $(foreach each,docker podman,$(shell $(each) info >/dev/null 2>&1 && echo $(each))))

.PHONY: quickstart test test-unit test-runs test-cluster test-thorough style benchmark wheel image image-cuda clean help

help:          ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+): .*## /  make \1\t/' | expand -t 22

quickstart: $(VENV)/.quickstart ## install, then train, register, route, search and evaluate on real data
	$(VENV)/bin/ttmoe run quickstart

test: $(VENV)/.test ## install the test dependencies and run all tests (ten minutes on two cores)
	$(PYTEST)

test-unit: $(VENV)/.test ## the tests that start no cluster (three minutes on two cores)
	$(PYTEST) tests/unit

test-runs: $(VENV)/.test ## the tests that start Ray, MLflow or whole commands
	$(PYTEST) tests/integration tests/e2e

test-cluster: $(VENV)/.test ## all tests on clusters of several nodes (Ray; Slurm, if it is installed): 25 minutes
	$(PYTEST) --numprocesses=0 --thorough tests/cluster

test-thorough: $(VENV)/.test ## all tests, with a crash at every step (an hour)
	$(PYTEST) --thorough

style: $(VENV)/.style ## format, lint and type checks
	$(VENV)/bin/ruff check . && $(VENV)/bin/mypy

benchmark: $(VENV)/.benchmark ## measure against peers and write tests/benchmarks/RESULTS.md
	$(VENV)/bin/python -m tests.benchmarks

# What an earlier build left in build/ would be packed too.
wheel: $(VENV)/bin/python ## build the wheel into dist/
	rm -rf build dist/ttmoe-*.whl
	$(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	rm -rf build

image: IMAGE = cpu
image-cuda: IMAGE = cuda
image: ## build the container image ttmoe:cpu, for nodes without GPUs
image-cuda: ## build the container image ttmoe:cuda, for nodes with NVIDIA GPUs
image image-cuda: wheel
	@test -n "$(ENGINE)" || { echo "no container engine answers: install docker or podman, and start it" >&2; exit 1; }
	$(ENGINE) build --file cluster/images/Dockerfile.$(IMAGE) --tag ttmoe:$(IMAGE) .

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
