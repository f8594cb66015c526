# make demo    start the whole service, send a real photo through it, compare the result with JPEG
#              and WebP, stop the service
# make serve   start the whole service on this machine and keep it running
# make test    everything that CI checks
# make screenshots    every page of the dashboard as a picture, in screenshots/ (needs Chromium)
# Each sets up a fresh machine by itself: Python 3.11 or newer is all they need.

# The first of these that runs and is new enough.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# More arguments for pip, for example an index of CPU builds of torch on a machine without a GPU.
PIP_ARGS ?=
# Test files that run at the same time: much of what they do is waiting for workers and servers.
PROCESSES ?= 3
# Seconds that each fuzz target runs.
FUZZ_SECONDS ?= 10

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo serve test lint types unit fuzz screenshots format clean

demo: $(INSTALLED)
	$(BIN)/python -m api.demo

serve: $(INSTALLED)
	$(BIN)/python -m api.serve

test: lint types unit fuzz

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

# Each target for a few seconds; inputs that break one are kept under .fuzz/.
fuzz: $(INSTALLED)
	@mkdir -p .fuzz
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then \
		for target in $(basename $(notdir $(wildcard tests/fuzz/fuzz_*.py))); do \
			echo "$$target: $(FUZZ_SECONDS) s"; \
			$(BIN)/python -m tests.fuzz.$$target -max_total_time=$(FUZZ_SECONDS) \
				-artifact_prefix=.fuzz/ -verbosity=0 -print_final_stats=1 || exit 1; \
		done; \
	else echo "fuzz: skipped, atheris has no build for this platform"; fi

# Pages of the running service with jobs that really ran; KEEP=--keep renews those in docs/images.
screenshots: $(INSTALLED)
	$(BIN)/python -m tests.dashboard.screenshots screenshots $(KEEP)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: install one," \
		"or name it (make PYTHON=/path/to/python)." >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): torch and the other libraries" \
		"are downloaded once, which takes a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# what is imported is compiled when it first is; most of torch never
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo .fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
