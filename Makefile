# `make demo` and `make test` need Python 3.11, pip and make; all else they set up in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check faults lint clean

# Train on real handwritten digits, then answer for ten that the model never saw.
demo: .venv/for-use
	$(BIN)/vitrail train digits
	@run=$$(ls -dt runs/digits-* | head -n 1); \
	echo; echo "vitrail predict $$run $$run/examples/*"; \
	$(BIN)/vitrail predict $$run $$run/examples/*

# All tests.
test: .venv/for-work
	$(BIN)/pytest

# What to run before a commit: format, lint, types and the fast tests, in about a minute.
check: lint
	$(BIN)/pytest -m "not slow"

# Kills, broken files and full disks in numbers, in about ten minutes.
faults: .venv/for-work
	$(BIN)/python tests/faults.py --write docs/faults.md

lint: .venv/for-work
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

.venv/for-use: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/for-work: .venv/for-use
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
