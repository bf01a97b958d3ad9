# `make run` and `make test` install what they need; `make help` lists the rest.

IS_3_11 := -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python $(IS_3_11) >/dev/null 2>&1 && break; done; echo $$python)
IN_VENV := .venv/bin/python

.PHONY: help setup run test faults check lock
.DEFAULT_GOAL := help

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 14

setup: ## fill .venv with requirements/cpu.lock, if it is not yet
	@"$(PYTHON)" $(IS_3_11) 2>/dev/null || { echo "setup: Python 3.11 is needed, and $(PYTHON) is" \
		"$$("$(PYTHON)" --version 2>/dev/null || echo not there): install it, or name one: make PYTHON=/path/to/python3.11 …" \
		>&2; exit 1; }
	@"$(PYTHON)" requirements/install.py

run: setup ## classify the demo corpus with the embedded model: out/corpus to out/classify
	@$(IN_VENV) -m demo.model
	@$(IN_VENV) -m demo.corpus
	$(IN_VENV) -m pipelines.run +job=classify job.gold=sentiment source.uri=out/corpus

test: setup ## the tests
	@$(IN_VENV) -m demo.model
	$(IN_VENV) -m pytest -n 2 --dist loadscope

faults: setup ## the whole fault campaign, with a table at its end; make faults SEED=17 repeats one
	@$(IN_VENV) -m demo.model
	$(IN_VENV) -m tests.faults $(SEED)

check: setup ## format, lint, types, layers
	$(IN_VENV) -m ruff format --check .
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m mypy
	.venv/bin/lint-imports

lock: setup ## resolve pyproject.toml anew into requirements/*.lock
	@$(IN_VENV) -m requirements.lock
