# Set-up and checks of a checkout. Everything lands in .venv; nothing outside this folder is written.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.medquant-setup
NATIVE_STAMP := $(VENV)/.medquant-native
NATIVE := $(wildcard native/CMakeLists.txt native/*/CMakeLists.txt native/cmake/* native/src/*)
TORCH := torch==2.13.0
# One thread a worker: results are bit-equal per thread count, and two workers share the processor evenly.
TEST_ENV := OMP_NUM_THREADS=1
WORKERS ?= 2

.PHONY: setup native test test-slow test-container demo check clean

setup: $(NATIVE_STAMP)

# torch comes first and by its exact version, so that nothing else decides which build is taken.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "medquant needs Python 3.11 or later, found $$($(PYTHON) --version 2>&1); try: make setup PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

native: $(NATIVE_STAMP)

# Compiles what changed. Without a C++ compiler the rest works, and the tests of the native engine say that they skip.
$(NATIVE_STAMP): $(STAMP) $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@$(BIN)/python -c 'from medquant.deploy.native import why_missing; print(why_missing() or "the native library is built")' >&2
	@touch $@

test: $(NATIVE_STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(NATIVE_STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m slow

# Builds the Dockerfile and runs it; skips, saying so, where nothing can build images.
test-container: $(NATIVE_STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -m container -rs

demo: $(NATIVE_STAMP)
	$(BIN)/medquant train --wbits 4 --abits 6

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict medquant
	$(BIN)/lint-imports

# Leaves .venv: it takes minutes to build again. Remove it by hand for a fresh one.
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -f $(NATIVE_STAMP) medquant/deploy/native/*medquant_native*
	find native/editable -mindepth 1 -maxdepth 1 ! -name CMakeLists.txt -exec rm -rf {} +
	find medquant tests -type d -name __pycache__ -prune -exec rm -rf {} +
