# Everything that a developer or a CI machine runs. `make` alone builds .venv; the other targets build it first.
#
#   PORT=8001 make run              another port (every setting of .env.example works like this)
#   make PYTHON=/opt/python3.14     the interpreter to build .venv with, instead of the first suitable one
#   make test PYTEST_ARGS="-k sync" a part of the suite

.DEFAULT_GOAL := setup
MAKEFLAGS += --no-print-directory

# Write bytecode even if the machine is set up not to: with it, the suite's many processes start three times as fast.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
# A test waits half of its time, so six processes keep two cores busy.
PYTEST := $(BIN)/python -m pytest -n 6 --dist worksteal
ON_SQLITE := DOCORA_TEST_DATABASE=sqlite $(PYTEST)
PYTEST_ARGS ?=
PACKAGES := docora repositories_app deliveries_app

# PYTEST_ARGS may select no test that runs on SQLite. pytest's exit status 5 (no tests collected) is then not a failure.
MAY_BE_EMPTY = $(if $(strip $(PYTEST_ARGS)),|| test $$? -eq 5)

.PHONY: setup run test test-sqlite test-environment bench bench-pages openapi soak screenshots check check-format check-lint check-types check-templates check-django check-audit sbom pin-images lock dist clean

setup:
	@.ci/bootstrap.sh

run: setup
	@exec $(BIN)/python manage.py up --demo

# Tests that depend on the database: lease, clock, hand-written and compiled SQL, scheduling, planner, fields, triggers, history,
# quotas and limits, and whole journeys. `make test` runs them on SQLite too. `tests/upgrade` migrates both kinds of database.
DATABASE_TESTS := \
	tests/docora/test_crypto.py tests/docora/test_groups.py tests/docora/test_compiled.py \
	tests/faults/test_clocks.py tests/faults/test_tenants.py tests/hostile/test_slow_peers.py tests/api/test_quotas.py \
	$(patsubst %,tests/deliveries/test_%.py, alerts batch_sql checks circuit costs csv endpoint_health fast_plan first_sync \
	history import lease meanwhile pace plan progress_end pruning queueing quotas random_histories requests rescans runs \
	slices slots) \
	$(patsubst %,tests/deliveries/test_audit.py::test_%, database_refuses_changes \
	only_retention_deletes_and_only_what_is_old other_connections_cannot_delete_meanwhile)

# Run the whole suite on PostgreSQL, then a part of it on SQLite. pytest's summary is the last line.
test: test-environment
	$(PYTEST) $(PYTEST_ARGS)
	$(ON_SQLITE) $(DATABASE_TESTS) $(PYTEST_ARGS) $(MAY_BE_EMPTY)

# Run every test that uses the database on SQLite.
test-sqlite: test-environment
	$(ON_SQLITE) $(DATABASE_TESTS) tests/deliveries tests/repositories/test_mirror.py \
		--ignore tests/deliveries/test_admin_queries.py $(PYTEST_ARGS) $(MAY_BE_EMPTY)

test-environment: setup
	@.ci/system-packages.sh

# Run random histories and storms with crashes and outages, and add the results to those of the same commit in
# tests/faults/RESULTS.md. SOAK_ARGS says how many or how long: "--histories 200" or "--minutes 60 --first-seed 7000".
SOAK_ARGS ?=

soak: setup
	$(BIN)/python -m tests.faults.soak $(SOAK_ARGS)

# Take screenshots of a running instance for README.md, in static/docs/. Look at them before you commit them.
screenshots: setup
	@.ci/system-packages.sh
	$(BIN)/python -m tests.browser.screenshots

# Measure speed and memory, and compare them with bare git and bare libcurl. Takes about twenty minutes, and 20 GB in /tmp
# while it runs. A whole run rewrites tests/bench/RESULTS.md and its charts. BENCH_ARGS="--only first,check" runs only
# these parts, "--most 100000" limits the size.
BENCH_ARGS ?=

bench: setup
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

# Measure the server time and queries of every admin page with 5 million deliveries. Takes some minutes, and 3 GB in
# /tmp while it runs. BENCH_ARGS="--deliveries 100000 --only delivery" makes it smaller.
bench-pages: setup
	$(BIN)/python -m tests.bench.pages $(BENCH_ARGS)

# Check the OpenAPI document with redocly and spectral, and exercise a client in TypeScript that is generated from it. The
# tools come from the npm registry, so this is not a part of `make test`.
OPENAPI_TOOLS := .venv/.openapi

openapi: test-environment
	npm install --prefix $(OPENAPI_TOOLS) --no-save --no-package-lock --no-fund --no-audit --silent \
		$$($(BIN)/python -c 'import json; d = json.load(open("tests/openapi/package.json"))["dependencies"]; print(*(f"{n}@{v}" for n, v in d.items()))')
	OPENAPI_TOOLS=$(OPENAPI_TOOLS) $(BIN)/python -m pytest -q tests/openapi

check: check-format check-lint check-types check-templates check-django check-audit

check-format: setup
	$(BIN)/ruff format --check .

check-lint: setup
	$(BIN)/ruff check .

# Tools that no test runs as a whole. mypy finds calls in them that no longer match the called function.
TOOLS := $(wildcard tests/bench/*.py tests/bench/crowd/*.py) tests/browser/screenshots.py tests/faults/soak.py \
	tests/upgrade/make_dumps.py

check-types: setup
	$(BIN)/mypy manage.py $(PACKAGES) $(TOOLS)

check-templates: setup
	find templates -name '*.html' -exec $(BIN)/djade --check --target-version 6.1 {} +

# Check as in production: with an https address, an empty data directory, and without the .env of this checkout.
check-django: setup
	@data=$$(mktemp -d) && trap 'rm -rf "$$data"' EXIT && trap 'exit 130' INT TERM && \
	export PUBLIC_URL=https://docora.example DATA_DIR="$$data" DOCORA_ENV_FILE=/dev/null && \
	set -x && \
	$(BIN)/python manage.py check --deploy --fail-level WARNING && \
	$(BIN)/python manage.py makemigrations --check --dry-run

# Look for known vulnerabilities in the pinned packages. If their database can't be reached, this prints a
# sentence and succeeds.
check-audit: setup
	$(BIN)/python .ci/audit.py

# List the packages that Docora runs with, in the format CycloneDX, for those who have to know what is installed.
SBOM := dist/docora.cdx.json

sbom: setup
	@mkdir -p $(dir $(SBOM))
	.ci/sbom.sh $(SBOM)

# Print lines for `.env` that pin the newest container images. Needs docker and the network.
pin-images:
	@.ci/pin-images.sh

# Pin every package, including extras, with its hashes, for Python 3.12 and newer on any system, and also the uv that
# `setup` may fetch. Pinned versions stay as long as pyproject.toml allows them. LOCK_ARGS=--upgrade upgrades everything.
LOCK_ARGS ?=
COMPILE = "$$uv" pip compile --quiet $(LOCK_ARGS) --universal --python-version 3.12 --generate-hashes \
	--no-annotate --no-header --no-emit-index-url --no-python-downloads --python $(BIN)/python

lock: setup
	@uv=$$(.ci/bootstrap.sh uv) && set -x && \
	$(COMPILE) pyproject.toml --all-extras --output-file requirements.txt && \
	$(COMPILE) pyproject.toml --all-extras --group dev --constraint requirements.txt --output-file requirements-dev.txt && \
	echo uv | $(COMPILE) - --output-file .ci/uv.txt
	@.ci/bootstrap.sh

# Build a wheel, which has all of Docora but its dependencies, an sdist, and constraints.txt, with which pip installs the
# versions that Docora is tested with. A commit gives the same bytes everywhere.
DIST := dist

dist: setup
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build -d $(DIST)
	sed -n 's/ *\\$$//; /^[a-z]/p' requirements.txt >$(DIST)/constraints.txt

# Remove what was built. `var/` stays, because it holds data.
clean:
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . \( -name .git -o -name var \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
