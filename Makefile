# Set-up and checks of a checkout. Everything lands in .venv; nothing outside this folder is written.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.medquant-setup
TORCH := torch==2.13.0
# One thread a worker: results are bit-equal per thread count, and two workers share the processor evenly.
TEST_ENV := OMP_NUM_THREADS=1
WORKERS ?= 2

.PHONY: setup test test-slow test-container demo check clean

setup: $(STAMP)

# torch comes first and by its exact version, so that nothing else decides which build is taken.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "medquant needs Python 3.11 or later, found $$($(PYTHON) --version 2>&1); try: make setup PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

test: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m slow

# Builds the Dockerfile and runs it; skips, saying so, where nothing can build images.
test-container: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -m container -rs

demo: $(STAMP)
	$(BIN)/medquant train --wbits 4 --abits 6

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict medquant
	$(BIN)/lint-imports

# Leaves .venv: it takes minutes to build again. Remove it by hand for a fresh one.
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find medquant tests -type d -name __pycache__ -prune -exec rm -rf {} +
