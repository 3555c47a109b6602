# Everything sets itself up: `make demo` and `make test` need Python 3.11 and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check format tables clean

setup: .venv/ready

# torch first and by version: a bare requirement may pull gigabytes of CUDA libraries
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e '.[test]'
	touch $@

demo: setup
	$(BIN)/invprob demo

test: setup
	$(BIN)/python -m pytest

check: test
	$(BIN)/python -m pytest -m slow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# hours at most; every finished cell is kept in benchmarks/ and not run again
tables: setup
	$(BIN)/python examples/benchmark_tables.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info
