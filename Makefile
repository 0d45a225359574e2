# Two commands on a fresh machine: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
BIN = .venv/bin
.DEFAULT_GOAL := demo
# The tests start hundreds of processes; without compiled files each of them would compile hpo again.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: demo test test-all chaos lint docs bench bench-storage bench-dashboard bench-workers bench-search service-demo env clean

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

# pip would compile 18,000 files on one core.
.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[test]'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch .venv/installed $@

demo: .venv/installed
	$(BIN)/hpo launch studies/digits.toml

# Two processes share the suite, file by file: half of the tests wait for child processes.
test: .venv/installed-test
	$(BIN)/pytest -n 2 --dist loadfile

# Quick and slow tests: chaos, a Ray cluster whose nodes die, a walk through the dashboard.
test-all: .venv/installed-test
	$(BIN)/pytest -n 2 --dist loadfile -m ""

# Fifty kills and five restarts of the server, on both databases, without and with successive halving;
# CHAOS=--randomly-seed=N repeats a plan.
chaos: .venv/installed-test
	$(BIN)/pytest tests/storage/test_chaos.py -m slow -s $(CHAOS)

# The whole service on a temporary PostgreSQL: queue, four workers, dashboard, export, stop.
service-demo: .venv/installed-test
	$(BIN)/python demos/service.py

# The docs as a site: build/docs/docs/index.html. A warning is an error.
docs: .venv/installed-test
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --fresh-env --write-all --builder html --conf-dir docs . build/docs

lint: .venv/installed-test docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Training and whole searches against plain torch and plain Optuna, in short chunks in alternation; 5 minutes.
bench: .venv/installed-test
	$(BIN)/python benchmarks/chapter6.py

bench-storage: .venv/installed-test
	$(BIN)/python benchmarks/storage.py

bench-dashboard: .venv/installed-test
	$(BIN)/python benchmarks/dashboard.py

# Random passwords for docker-compose.yml, readable by you only, never overwritten. Needs no Python.
env:
	@set -eu; umask 077; \
	if [ -e .env ]; then echo ".env exists already and is not changed"; exit 0; fi; \
	random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }; \
	set -C; for name in POSTGRES_PASSWORD HPO_DATABASE_PASSWORD HPO_DASHBOARD_PASSWORD; do \
	    echo "$$name=$$(random)"; \
	done > .env; \
	echo ".env has three new passwords; store a copy of it with your backups"

bench-workers: .venv/installed-test
	$(BIN)/python benchmarks/workers.py

# Simulated on the tables of curves in benchmarks/tables; benchmarks/curve_tables.py trains them again.
bench-search: .venv/installed-test
	$(BIN)/python benchmarks/search_quality.py

clean:
	rm -rf .venv build *.egg-info
