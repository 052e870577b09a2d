# `make demo` and `make test` need Python 3.11, pip and make; all else they set up in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check faults ray serving package lint clean

# Train on real handwritten digits, then answer for ten that the model never saw.
demo: .venv/for-use
	$(BIN)/vitrail train digits
	@run=$$(ls -dt runs/digits-* | head -n 1); \
	echo; echo "vitrail predict $$run $$run/examples/*"; \
	$(BIN)/vitrail predict $$run $$run/examples/*

# All tests, a file at a time on each of two cores; more threads would only stand in their way.
test: .venv/for-work
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

# What to run before a commit: format, lint, types and the fast tests, in about a minute.
check: lint
	$(BIN)/pytest -m "not slow"

# Kills, broken files and full disks in numbers, in about ten minutes.
faults: .venv/for-work
	$(BIN)/python tests/faults.py --write docs/faults.md

# Predict and embed on a Ray cluster, one node of which is killed: about a minute. Once Ray is there,
# `make test` runs this too.
ray: .venv/for-work
	$(PIP) --editable '.[dev,ray]'
	$(BIN)/pytest tests/test_ray.py

# The server against its OpenAPI document; schemathesis brings ten packages, so only here.
serving: .venv/for-work
	$(PIP) schemathesis==4.32.5
	$(BIN)/pytest tests/test_serving.py tests/test_serving_*.py

# The wheel in a bare environment: train, predict, serve; two minutes.
package: .venv/for-work
	$(BIN)/python tests/bare.py

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
