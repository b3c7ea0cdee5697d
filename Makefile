# Everything here sets itself up: only Python 3.11+, git and make need to be there.
#   make demo   files turn into outcomes, under two minutes     make test   all tests      make lint   ruff, mypy, layers
#   make bench  the figures of docs/benchmarks.md               make services   install the services that tests use
#   make pictures  docs/pictures/: scaling and autoscaling (a few minutes)
#   make fuzz   random input, for TIME=60 seconds a target          make audit  known vulnerabilities of the pinned packages
#   make lock   requirements/*.txt, with hashes               make sbom   sbom.json, of the runtime's packages (CycloneDX)
#   make kafka  a Kafka broker to try things with (Java 17 and Maven; make kafka NODES=3)
#   make kubernetes  build Kubernetes (Go, etcd; 5 to 30 minutes, once) and test jobs and an endpoint on it

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The newest Python from 3.11 to 3.13 that is on the PATH; PYTHON=... picks another.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c 'import sys, venv; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint format bench pictures kafka kubernetes services fuzz soak lock audit sbom clean
help:
	@sed -n '2,8s/^# *//p' Makefile

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "oncue needs Python 3.11 to 3.13 with its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.user: $(VENV)/.made pyproject.toml
	@echo "installing oncue into $(VENV) ..."
	@$(BIN)/pip install --quiet -e '.[server,demo]'
	@touch $@

# The pinned packages: pip takes over ten minutes to choose versions of so many by itself.
$(VENV)/.dev: $(VENV)/.made pyproject.toml requirements/dev.txt
	@echo "installing oncue and the developers' tools into $(VENV) ..."
	@$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --no-deps -e .
	@touch $@ $(VENV)/.user

demo: $(VENV)/.user
	@$(BIN)/oncue demo

test: $(VENV)/.dev
	$(BIN)/pytest -n auto --dist worksteal $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ARGS)

pictures: $(VENV)/.dev
	$(BIN)/python -m bench pictures $(ARGS)

kafka: $(VENV)/.dev
	@$(BIN)/python -m tests.kafka $(NODES)

kubernetes: $(VENV)/.dev
	@$(BIN)/python -m tests.kubernetes
	$(BIN)/pytest -q tests/integration/test_kubernetes_jobs.py tests/e2e/test_kubernetes_endpoint.py $(ARGS)

fuzz: $(VENV)/.dev
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install --quiet 'atheris>=3' || true
	$(BIN)/python -m tests.security.fuzz --time $(or $(TIME),60) $(TARGET)

soak: $(VENV)/.dev
	ONCUE_SOAK=$(or $(TIMES),84) $(BIN)/pytest -q tests/integration/test_multiprocessing.py tests/e2e/test_slurm_walltime.py $(ARGS)
	$(BIN)/python -m tests.chaos.blocks --runs $(or $(RUNS),20)

# For all systems and Pythons that oncue runs on.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
lock: $(VENV)/.dev
	$(LOCK) --upgrade --extra server --extra kafka --extra demo --output-file requirements/server.txt pyproject.toml
	$(LOCK) --upgrade --constraint requirements/server.txt --extra dev --output-file requirements/dev.txt pyproject.toml

audit: $(VENV)/.dev
	@$(BIN)/python tools/audit

sbom: $(VENV)/.dev
	@$(BIN)/cyclonedx-py requirements requirements/server.txt --pyproject pyproject.toml --output-reproducible -o sbom.json
	@echo "sbom.json is written"

services:
	@sh tools/services

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
