# One command runs what CI runs: `make check`. PYTHON chooses the interpreter, e.g. `make test PYTHON=python3.12`;
# each Python version has an environment of its own.

PYTHON ?= python3
TESTS ?= tests
# Most tests wait for servers and other processes most of the time.
PROCESSES ?= 4
STORES ?= postgres mysql sqlite
# What is run a second time under settings as hard as can be; other tests choose their own.
STRICTLY ?= $(addprefix tests/distributed/test_,determinism.py interrupts.py costs.py streaming.py time_travel.py)
STORM_MINUTES ?= 0.7
# A machine that does something else beside it may take longer than the 15 s that are promised.
RECOVERY_SECONDS ?= 60
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv-$(VERSION)
DEMO := .venv-demo
BIN := $(VENV)/bin
SOURCES := $(shell find shared coordinator worker -type f -not -name '*.pyc')
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The prerequisites of `check` run in their order, fast ones first, also under `make -j`.
.NOTPARALLEL:
.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(DEMO)/.installed  ## Run the audit example on SQLite; installs nothing but what users install
	@$(DEMO)/bin/lockstep run docs/examples/audit.py:graph --input '{}' --store sqlite:///demo.db

.PHONY: check
check: lint types contracts docs test  ## All that CI checks

.PHONY: lint
lint: $(VENV)/.installed  ## Style and formatting
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

.PHONY: format
format: $(VENV)/.installed  ## Format the code, and mend what ruff can mend by itself
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: types
types: $(VENV)/.installed  ## Types, mypy strict
	@$(BIN)/mypy

.PHONY: contracts
contracts: $(VENV)/.installed  ## Who may import whom
	@$(BIN)/lint-imports --no-logo

.PHONY: docs
docs: $(VENV)/.installed  ## Build the documentation into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet  # The theme's advertisement would drown a real warning.

.PHONY: test
test: $(VENV)/.installed  ## Tests; the last line is pytest's summary. TESTS chooses some
	@$(BIN)/pytest --numprocesses $(PROCESSES) --dist worksteal $(TESTS)

.PHONY: storm
storm: $(VENV)/.installed  ## Two minutes of faults beneath real processes, on each database
	@for store in $(STORES); do \
		$(BIN)/python -m tests.chaos --store $$store --minutes $(STORM_MINUTES) --recovery-seconds $(RECOVERY_SECONDS) || exit; \
	done

.PHONY: proof
proof: $(VENV)/.installed  ## All proofs at full length, about an hour: simulation, storms, every crash point, 1,000 equal runs
	@$(BIN)/python -m tests.simulation --schedules 100000
	@$(BIN)/python -m tests.chaos --store postgres --minutes 15
	@$(BIN)/python -m tests.chaos --store mysql --minutes 5
	@$(BIN)/python -m tests.chaos --store sqlite --minutes 5
	@LOCKSTEP_TEST_STRICT=1 $(BIN)/pytest --timeout 1800 --numprocesses $(PROCESSES) --dist worksteal $(STRICTLY) \
		--deselect tests/distributed/test_determinism.py::test_tasks_are_enqueued_in_ascending_order_key
	@LOCKSTEP_TEST_RUNS=1000 LOCKSTEP_TEST_RESTART_ROUNDS=5 LOCKSTEP_TEST_CROWDED_SECONDS=60 LOCKSTEP_TEST_ALL_CRASH_POINTS=1 \
		$(BIN)/pytest --timeout 1800 --numprocesses $(PROCESSES) --dist worksteal tests/guarantees tests/distributed

.PHONY: bench
bench: $(VENV)/.installed  ## Benchmarks
	@$(BIN)/python -m tests.bench

.PHONY: clean
clean:  ## Remove environments, caches and builds
	rm -rf .venv-* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist site demo.db*
	find shared coordinator worker tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: python
python:
	@$(PYTHON) -c '' 2>/dev/null || { echo "There is no '$(PYTHON)' here. Choose a Python >= 3.11: make PYTHON=/path/to/python3 ..."; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "'$(PYTHON)' is Python $(VERSION), but Lockstep needs >= 3.11: make PYTHON=python3.11 ..."; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "'$(PYTHON)' cannot make environments: its venv or ensurepip is missing." \
			"On Debian and Ubuntu: apt-get install python3-venv"; exit 1; } >&2

# An environment is made anew when its inputs change, so it never holds a dependency that is no longer declared. `python` only
# checks, and comes after the bar so that it never makes an environment look old.
$(VENV)/.installed: pyproject.toml | python
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

$(DEMO)/.installed: pyproject.toml $(SOURCES) | python
	@$(PYTHON) -m venv --clear $(DEMO)
	@$(DEMO)/bin/pip install --quiet .
	@touch $@
