# Everything a person or a CI machine runs. `make` alone builds .venv; every other target builds it first.
#
#   PORT=8001 make run              another port (every setting of .env.example works like this)
#   make PYTHON=/opt/python3.14     the interpreter to build .venv with, instead of the first fitting one
#   make test PYTEST_ARGS="-k sync" a part of the suite

.DEFAULT_GOAL := setup
MAKEFLAGS += --no-print-directory

# Compiled once, each of the suite's many processes starts in a third of the time, whatever the machine prefers.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 3 --dist worksteal
ON_SQLITE := DOCORA_TEST_DATABASE=sqlite $(PYTEST)
PYTEST_ARGS ?=
PACKAGES := docora repositories_app deliveries_app

# A part of the suite may hold nothing that runs on SQLite; pytest's "no test was collected" (5) is then no failure.
MAY_BE_EMPTY = $(if $(strip $(PYTEST_ARGS)),|| test $$? -eq 5)

.PHONY: setup run test test-sqlite test-environment bench bench-pages soak screenshots check check-format check-lint check-types check-templates check-django lock dist clean

setup:
	@.ci/bootstrap.sh

run: setup
	@exec $(BIN)/python manage.py up --demo

# Tests that depend on the database: lease, clock, hand-written SQL, scheduling, planner, fields, migrations, history, and
# whole journeys. `make test` runs them on SQLite too.
DATABASE_TESTS := tests/docora/test_crypto.py tests/docora/test_groups.py tests/faults/test_clocks.py \
	$(patsubst %,tests/deliveries/test_%.py, alerts batch_sql checks circuit csv fast_plan \
	first_sync history import lease meanwhile plan progress_end pruning queueing random_histories requests rescans runs slots)

# The whole suite on PostgreSQL, then a part of it on SQLite. Pytest's summary is the last line.
test: test-environment
	$(PYTEST) $(PYTEST_ARGS)
	$(ON_SQLITE) $(DATABASE_TESTS) $(PYTEST_ARGS) $(MAY_BE_EMPTY)

# Every test that uses the database, on SQLite.
test-sqlite: test-environment
	$(ON_SQLITE) $(DATABASE_TESTS) tests/deliveries tests/repositories/test_mirror.py \
		--ignore tests/deliveries/test_admin_queries.py $(PYTEST_ARGS) $(MAY_BE_EMPTY)

test-environment: setup
	@.ci/system-packages.sh

# Random histories, crashes and outages among them, for as long as asked; rewrites tests/faults/RESULTS.md.
# SOAK_ARGS="--histories 200" or "--minutes 60 --first-seed 7000".
SOAK_ARGS ?=

soak: setup
	$(BIN)/python -m tests.faults.soak $(SOAK_ARGS)

# Pictures of a running instance for the documentation, in static/docs/. Look at them before you commit them.
screenshots: setup
	@.ci/system-packages.sh
	$(BIN)/python -m tests.browser.screenshots

# Speed and memory, beside the wire's ceiling: about twenty minutes and 20 GB below /tmp meanwhile; a whole run rewrites
# tests/bench/RESULTS.md and its charts. BENCH_ARGS="--only first,check" takes some of it, "--most 100000" ends there.
BENCH_ARGS ?=

bench: setup
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

# Server time and queries of every admin page, with 5 million deliveries: some minutes, and 3 GB below /tmp meanwhile.
# BENCH_ARGS="--deliveries 100000 --only delivery" makes it smaller.
bench-pages: setup
	$(BIN)/python -m tests.bench.pages $(BENCH_ARGS)

check: check-format check-lint check-types check-templates check-django

check-format: setup
	$(BIN)/ruff format --check .

check-lint: setup
	$(BIN)/ruff check .

check-types: setup
	$(BIN)/mypy manage.py $(PACKAGES)

check-templates: setup
	find templates -name '*.html' -exec $(BIN)/djade --check --target-version 6.1 {} +

# As in production: an https address, an empty data directory, and no .env of this checkout.
check-django: setup
	@data=$$(mktemp -d) && trap 'rm -rf "$$data"' EXIT && trap 'exit 130' INT TERM && \
	export PUBLIC_URL=https://docora.example DATA_DIR="$$data" DOCORA_ENV_FILE=/dev/null && \
	set -x && \
	$(BIN)/python manage.py check --deploy --fail-level WARNING && \
	$(BIN)/python manage.py makemigrations --check --dry-run

# Pins every package, extras included, with its hashes, for Python 3.12 and newer on any system, and the uv that `setup`
# may fetch. What is pinned stays where it is as long as pyproject.toml allows; LOCK_ARGS=--upgrade moves everything to
# the newest.
LOCK_ARGS ?=
COMPILE = "$$uv" pip compile --quiet $(LOCK_ARGS) --universal --python-version 3.12 --generate-hashes \
	--no-annotate --no-header --no-emit-index-url --no-python-downloads --python $(BIN)/python

lock: setup
	@uv=$$(.ci/bootstrap.sh uv) && set -x && \
	$(COMPILE) pyproject.toml --all-extras --output-file requirements.txt && \
	$(COMPILE) pyproject.toml --all-extras --group dev --constraint requirements.txt --output-file requirements-dev.txt && \
	echo uv | $(COMPILE) - --output-file .ci/uv.txt
	@.ci/bootstrap.sh

# A wheel, which is all of Docora but its dependencies, and an sdist: the same bytes wherever one commit is built.
DIST := dist

dist: setup
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build -d $(DIST)

# Leaves `var/` alone: it holds data.
clean:
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . \( -name .git -o -name var \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
