# What a newcomer needs: `make run` and `make test`. Both set everything up first; a second run is fast.
# `make help` lists the targets.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first Python of at least 3.11 there is; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
NPM := $(shell command -v npm 2>/dev/null)
NODE := $(BIN)/python -m tests.support.node
PACKAGES := matrixlib servicekit roomserver clientapi syncapi federation
SOURCES := $(PACKAGES) tests benchmarks proto
PYTEST := $(BIN)/python -m pytest
ARGS ?=

.PHONY: help setup run fmt lint type imports test unit property integration security peers peers-setup chaos \
	chaos-smoke bench bench-smoke bench-federation bench-matrixlib bench-roomserver fuzz fuzz-parsing fuzz-judging oracle check proto proto-check contracts contracts-accept lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 20

# -- setting up ------------------------------------------------------------------------------------------------------

setup: $(VENV)/.installed $(if $(NPM),node_modules/.installed) ## make .venv (with .venv/bin/arbor) and, where npm is, node_modules

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "Arbor needs Python 3.11 or newer"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--config-settings editable_mode=compat -e .
	touch $@

node_modules/.installed: package.json package-lock.json .npmrc
	npm ci --loglevel=error
	touch $@

peers-setup: .peers/synapse/.installed ## make the virtual environment in which Synapse, the peer, runs

.peers/synapse/.installed: tests/peers/synapse-requirements.lock | $(VENV)/.installed
	test -x .peers/synapse/bin/python || $(BIN)/python -m venv .peers/synapse
	.peers/synapse/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

lock: ## make the lock files anew from pyproject.toml and the like (needs uv)
	uv pip compile pyproject.toml --quiet --generate-hashes --no-header --no-emit-index-url -o requirements.lock
	uv pip compile pyproject.toml --quiet --generate-hashes --no-header --no-emit-index-url --extra dev -o requirements-dev.lock
	uv pip compile tests/peers/synapse-requirements.in --quiet --generate-hashes --no-header --no-emit-index-url \
		-o tests/peers/synapse-requirements.lock

clean: ## remove what was made, the running server's data excepted
	rm -rf $(VENV) .peers node_modules build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache benchmarks/results

# -- running ---------------------------------------------------------------------------------------------------------

run: setup ## start a homeserver on embedded defaults (ARGS="--config FILE" and the like)
	exec $(BIN)/arbor run $(ARGS)

# -- checks ----------------------------------------------------------------------------------------------------------

fmt: setup ## format the code
	$(BIN)/ruff check --quiet --fix-only $(SOURCES)
	$(BIN)/ruff format --quiet $(SOURCES)

lint: setup ## style, banned calls, formatting
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/ruff format --quiet --check $(SOURCES)

type: setup ## mypy, strict
	$(BIN)/mypy

imports: setup ## who may import whom
	$(BIN)/lint-imports --no-logo

proto: setup ## remake the stubs in arbor/ from the contracts in proto/
	$(BIN)/python proto/generate.py

proto-check: setup ## fail when the stubs are not what the contracts say
	$(BIN)/python proto/generate.py --check

contracts: setup proto-check ## stubs, and buf: lint, and no change that breaks what proto/baseline.binpb says
	$(NODE) buf lint
	$(NODE) buf breaking --against proto/baseline.binpb

contracts-accept: setup ## take the contracts as they are for what later changes must not break
	$(NODE) buf build --exclude-source-info -o proto/baseline.binpb

check: lint type imports contracts ## everything that needs no running server

# -- tests -----------------------------------------------------------------------------------------------------------

test: check peers-setup ## all checks and the test suite, the long suites excepted
	$(PYTEST) tests/unit tests/property tests/integration tests/security tests/peers $(ARGS)

unit: setup ## pure functions, milliseconds
	$(PYTEST) tests/unit $(ARGS)

property: setup ## property-based tests
	$(PYTEST) tests/property $(ARGS)

integration: setup ## with real databases, logs and processes
	$(PYTEST) tests/integration $(ARGS)

security: setup ## named tests of what must not be possible
	$(PYTEST) tests/security $(ARGS)

peers: setup peers-setup ## real clients against a running server
	$(PYTEST) tests/peers $(ARGS)

chaos: setup ## kill processes under load and count what was lost (long)
	ARBOR_CHAOS=long $(PYTEST) tests/chaos $(ARGS)

chaos-smoke: setup ## the same for a minute
	ARBOR_CHAOS=smoke $(PYTEST) tests/chaos $(ARGS)

oracle: setup peers-setup ## thousands of random rooms of each version, judged by us and by Synapse's modules (long)
	$(PYTEST) --timeout 7200 -m oracle tests/peers/test_matrixlib_oracle.py $(ARGS)

fuzz: setup ## the property tests with many more examples
	HYPOTHESIS_PROFILE=fuzz $(PYTEST) --timeout 7200 tests/property $(ARGS)

fuzz-parsing: setup ## mutated events against the parser and all behind it, for a bounded time
	$(BIN)/python -m tests.fuzz.fuzz_event_parsing --seconds 120 $(ARGS)

fuzz-judging: setup ## mutated events against the RoomServer's judge, for a bounded time
	$(BIN)/python -m tests.fuzz.fuzz_judging --seconds 120 $(ARGS)

bench-federation: setup peers-setup ## what federation costs: PDUs received, events sent, beside Synapse
	$(BIN)/python -m benchmarks.federation_bench $(ARGS)

bench-matrixlib: setup peers-setup ## auth and state resolution beside Synapse's modules, with ratios
	$(BIN)/python -m benchmarks.matrixlib_bench $(ARGS)

bench-roomserver: setup peers-setup ## large rooms: import, states, resolution and auth, beside Synapse where it has them
	$(BIN)/python -m benchmarks.roomserver_bench --large $(ARGS)

bench: setup peers-setup ## the same load against Arbor and Synapse, with a table of ratios (long)
	$(BIN)/python -m benchmarks $(ARGS)

bench-smoke: setup peers-setup ## the same with small numbers
	$(BIN)/python -m benchmarks --smoke $(ARGS)
