# The environment, the local stack and the checks. `make` alone lists the targets.

SHELL := /bin/bash
PYTHON := .venv/bin/python
STARTED := $(shell date +%s)
WATCH := customize/cat

export NO_ALBUMENTATIONS_UPDATE := 1
export GOMP_SPINCOUNT := 10000
export PREFECT_HOME ?= $(CURDIR)/.prefect

.DEFAULT_GOAL := help
.PHONY: help cat test check bench figures up down doctor lock

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

cat: up ## teach the model the concept cat, and print where the report is
	@$(PYTHON) -m deployments.local run $(WATCH)

test: .venv/.installed ## unit, e2e and browser tests
	@echo "set-up: $$(( $$(date +%s) - $(STARTED) )) s"
	@$(PYTHON) -m pytest --ignore=tests/e2e --numprocesses=logical --maxprocesses=4 --dist=loadfile
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/e2e --numprocesses=2 --dist=loadscope --durations=12

check: .venv/.installed ## format, lint, types and import directions
	@.venv/bin/ruff format --check
	@.venv/bin/ruff check
	@$(PYTHON) -m basedpyright --pythonpath $(PYTHON)
	@$(PYTHON) -c 'from importlinter.cli import lint_imports_command as lint; lint()'

bench: .venv/.installed ## measure speeds against the plain way, side by side
	@$(PYTHON) -m deployments.bench
	@$(PYTHON) -m deployments.bench_merge
	@$(PYTHON) -m deployments.bench_step

figures: up ## make every table and picture of README, docs and model card anew: hours
	@$(PYTHON) -m deployments.model_card --page data/models/openmoji/README.md
	@$(PYTHON) -m deployments.showcase --page README.md
	@$(PYTHON) -m deployments.ceiling
	@$(PYTHON) -m deployments.local run customize/cat
	@$(PYTHON) -m deployments.showcase_ui
	@$(PYTHON) -m deployments.showcase_methods --page docs/methods.md
	@$(PYTHON) -m deployments.showcase_together --page docs/methods.md
	@$(PYTHON) -m deployments.local run search/custom-diffusion
	@.venv/bin/customdiff table openmoji-custom-diffusion --page docs/results.md
	@$(PYTHON) -m deployments.local run benchmark/nightly
	@.venv/bin/customdiff table openmoji-nightly --page docs/results.md

up: .venv/.installed ## start server, worker and file server, and deploy; safe to repeat
	@$(PYTHON) -m deployments.local up

down: .venv/.installed ## stop them
	@$(PYTHON) -m deployments.local down

doctor: .venv/.installed ## look at this machine, and say what to do about what is missing
	@$(PYTHON) -m deployments.local doctor

# The same versions are kept where they still fit; `make lock UPGRADE=--upgrade` takes the newest.
lock: .venv/.installed ## pin the environment anew from pyproject.toml
	@$(PYTHON) -m pip install --quiet uv
	@head -3 requirements.lock > .venv/header
	@.venv/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--no-emit-package dataclasses --no-annotate --no-header --quiet $(UPGRADE) -o requirements.lock
	@cat .venv/header requirements.lock > .venv/lock && cp .venv/lock requirements.lock

# Interpreters are tried by running them: a version manager's shim may be there with nothing behind it, and an environment whose
# making was broken off has no pip.
.venv/.installed: requirements.lock pyproject.toml
	@set -euo pipefail; started=$$SECONDS; \
	fits='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; \
	for found in $(PYTHON) python3.12 python3.11 python3 python ""; do \
		if [ "$$found" = $(PYTHON) ] && ! "$$found" -m pip --version > /dev/null 2>&1; then continue; fi; \
		if [ -n "$$found" ] && "$$found" -c "$$fits" 2> /dev/null; then break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "Python: found none that runs, need 3.11 or 3.12 with venv; install python3 with python3-venv, or python3.11 with python3.11-venv" >&2; \
		exit 1; \
	fi; \
	if [ "$$found" != $(PYTHON) ]; then "$$found" -m venv --clear .venv; fi; \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock; \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	touch $@; \
	echo "environment: ready after $$(( SECONDS - started )) s"
