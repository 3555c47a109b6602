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

# every page of docs/ that holds figures: a day of a core or more. Most keep what they measured in
# benchmarks/ and do not measure it again
TABLES := benchmark_tables latent_table operator_speed operator_tables ablation gap \
	published_recipe step_cost published_numbers speed_against_others
tables: setup
	for page in $(TABLES); do $(BIN)/python examples/$$page.py || exit; done

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info
