# Two commands: `make quickstart` and `make test`. Each sets up .venv by itself; the second time that takes no time.
PYTHON ?= python3
ACCEL ?= cpu
WORKDIR ?= runs/quickstart
VENV ?= .venv

LOCK = $(shell $(PYTHON) -c 'import sys; print("locks/py311.txt" if sys.version_info < (3, 12) else "locks/py312.txt")')
JAX_EXTRA = $(if $(filter cuda,$(ACCEL)),cuda13,$(ACCEL))
READY = $(VENV)/ready-$(ACCEL)
DEV_READY = $(VENV)/ready-dev-$(ACCEL)
BIN = $(VENV)/bin

.PHONY: help setup quickstart test lint parity locks clean

help:
	@echo "make quickstart   set up, then train and evaluate on the embedded world (minutes on 2 cores)"
	@echo "make test         set up, then run the tests"
	@echo "make lint         ruff and mypy"
	@echo "make parity       install PyTorch and transformers for the parity tests and 'synthjax bench'"
	@echo "ACCEL=cpu|cuda|tpu chooses the jax build (now: $(ACCEL)); PYTHON=python3.12 the interpreter"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "synthjax needs Python 3.11 or newer; run make PYTHON=python3.12")'
	@case "$(ACCEL)" in cpu|cuda|tpu) ;; *) echo "ACCEL is '$(ACCEL)'; expected cpu, cuda or tpu" >&2; exit 2;; esac
	$(PYTHON) -m venv $(VENV)

$(READY): requirements.txt locks/py311.txt locks/py312.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(LOCK) -r requirements.txt
	@if [ "$(ACCEL)" != cpu ]; then $(BIN)/python -m pip install -q --disable-pip-version-check -c $(LOCK) "jax[$(JAX_EXTRA)]"; fi
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DEV_READY): $(READY) requirements-dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(LOCK) -r requirements-dev.txt
	@touch $@

setup: $(READY)

quickstart: $(READY)
	$(BIN)/python -m synthjax run --config configs/quickstart.py --workdir $(WORKDIR)

test: $(DEV_READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(DEV_READY)
	$(BIN)/ruff format --check -q synthjax configs tests docs/*.py
	$(BIN)/ruff check synthjax configs tests docs
	$(BIN)/mypy

parity: $(DEV_READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(LOCK) -r requirements-parity.txt

locks: requirements.txt requirements-dev.txt
	for version in 3.11 3.12; do \
	  uv pip compile -q requirements-dev.txt --python-version $$version --no-emit-index-url --no-annotate --no-header -o locks/py$$(echo $$version | tr -d .).txt; \
	done

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
