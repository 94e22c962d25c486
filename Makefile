# Every target works on a machine that has only Python 3.11+, make and git.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not ((3,11) <= sys.version_info[:2] < (3,14)))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.slipway-ready

.PHONY: help install demo test test-slow lint bench up down clean
help:
	@echo "make demo   ship a real application twice, with users on it (about 8 minutes the first time)"
	@echo "make up     start the sandbox;  make down  stop it and leave nothing behind"
	@echo "make test   run the tests (make test-slow the long ones);  make lint  check style, types and import rules"
	@echo "make bench  run the benchmarks (NAME=release for one); results in .slipway/bench/"

install: $(READY)

$(READY): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "slipway needs Python 3.11, 3.12 or 3.13 on PATH; install one, or run: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(READY)

demo: $(READY)
	@$(BIN)/python examples/demo.py

up: $(READY)
	@$(BIN)/slipway up

down: $(READY)
	@$(BIN)/slipway down

# Three workers for two processors: two have half of the scenarios each, which mostly wait.
test: $(READY)
	@$(BIN)/python -m pytest -n 3

test-slow: $(READY)
	@$(BIN)/python -m pytest -m slow

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY)
	@$(BIN)/python tests/bench/run.py $(NAME)

clean: down
	rm -rf .slipway $(VENV)
