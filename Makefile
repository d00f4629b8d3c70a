# `make demo` and `make test` set everything up by themselves; Python ≥ 3.11 is all they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test lint bench clean

install: $(READY)

$(READY): pyproject.toml setup.py constraints.txt CMakeLists.txt $(wildcard kernels/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name one with PYTHON=…"; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/simclr-engine demo

test: $(READY)
	$(BIN)/python -m pytest

# mypy follows folders, not setup.py's mapping of them: it is shown the packages under their import name, as links.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed/simclr_engine
	ln -s $(CURDIR)/engine/* $(CURDIR)/kernels $(CURDIR)/export $(CURDIR)/bench build/typed/simclr_engine/
	MYPYPATH=build/typed $(BIN)/mypy -p simclr_engine

# Speed floors are ratios between contenders of one run; they are asserted here and nowhere else.
bench: $(READY)
	$(BIN)/simclr-engine bench epoch --check
	$(BIN)/simclr-engine bench augment --check

clean:
	rm -rf $(VENV) build dist *.egg-info
