# Two commands on a fresh machine: `make demo` and `make test`. Everything lands in .venv.
PYTHON ?= python3
BIN = .venv/bin
.DEFAULT_GOAL := demo
.PHONY: demo test chaos lint bench bench-storage clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/hpo launch studies/digits.toml

test: .venv/installed-test
	$(BIN)/pytest

# Fifty kills and five restarts of the server, a minute on each database; CHAOS=--randomly-seed=N draws that plan again.
chaos: .venv/installed-test
	$(BIN)/pytest tests/storage/test_chaos.py -m chaos -s $(CHAOS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed-test
	$(BIN)/python benchmarks/chapter6.py

bench-storage: .venv/installed-test
	$(BIN)/python benchmarks/storage.py

clean:
	rm -rf .venv build *.egg-info
