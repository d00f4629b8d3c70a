# `make demo` and `make test` set everything up by themselves; Python ≥ 3.11 is all they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PLAIN := $(VENV)/.plain
READY := $(VENV)/.ready

.PHONY: install demo test lint bench gpu sanitize fuzz chaos wheel-check clean

install: $(READY)

INPUTS := pyproject.toml setup.py constraints.txt CMakeLists.txt $(wildcard kernels/native/*)
EXTRAS := [dev,serve,dali]
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name one with PYTHON=…"; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.$(1)'
endef

# What users install, which is enough for the demo; everything else comes with the extras.
$(PLAIN): $(INPUTS)
	$(call environment)
	@touch $(PLAIN)

$(READY): $(INPUTS)
	$(call environment,$(EXTRAS))
	@touch $(PLAIN) $(READY)

demo: $(PLAIN)
	$(BIN)/simclr-engine demo

# Two halves beside each other, one thread each (OMP_NUM_THREADS says otherwise), because two cores are all that is asked
# for. The Triton suites need processes of their own: the interpreter is chosen when a kernel is defined.
OTHER_HALF := kernels export bench engine/report engine/data engine/cli
test: $(READY)
	@mkdir -p build; export OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}; \
	{ TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreter; a=$$?; \
	  $(BIN)/python -m pytest tests/aot; b=$$?; \
	  $(BIN)/python -m pytest $(OTHER_HALF:%=tests/%); exit $$(( a || b || $$? )); } > build/other-half.log 2>&1 & half=$$!; \
	$(BIN)/python -m pytest $(OTHER_HALF:%=--ignore=tests/%); first=$$?; \
	echo "the other half: kernels, in Triton's interpreter and compiled for devices that are not here; $(OTHER_HALF)"; \
	wait $$half; half=$$?; cat build/other-half.log; \
	exit $$(( first || half ))

# The packages under their import name, as links: for what follows folders and not setup.py's mapping of them.
define LINKED
	rm -rf build/linked && mkdir -p build/linked/simclr_engine
	ln -s $(CURDIR)/engine/* $(CURDIR)/kernels $(CURDIR)/export $(CURDIR)/bench build/linked/simclr_engine/
endef

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(LINKED)
	MYPYPATH=build/linked $(BIN)/mypy -p simclr_engine

# Floors are ratios between contenders of one run; they are asserted here and nowhere else. Peers that fail to install
# are named in the tables. `bench store` needs 20 GB of disk for some minutes.
bench: $(READY)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[peers]'
	$(BIN)/simclr-engine bench epoch --check
	$(BIN)/simclr-engine bench nt-xent --check
	$(BIN)/simclr-engine bench augment --check
	$(BIN)/simclr-engine bench optimizer --check
	$(BIN)/simclr-engine bench scaling --check
	$(BIN)/simclr-engine bench store --check
	$(BIN)/simclr-engine bench evaluate --check
	$(BIN)/simclr-engine bench export --check

# Everything that only a CUDA device can say, part by part, each in a process of its own: gpu.json, gpu.md, rows and logs
# under OUT. Started again it goes on with what is missing.
#   make gpu                      in the virtual environment        make gpu DRY=1    every line at tiny sizes, on the CPU
#   make gpu PYTHON=python3       offline, with the packages of that Python       make gpu DATA=FOLDER-OR-ARCHIVE
#   make gpu ONLY=core            the parts whose names begin so                  make gpu MINUTES=9
OUT ?= build/gpu
GPU_FLAGS := --out $(OUT) $(if $(DRY),--dry) $(if $(DATA),--data '$(DATA)') $(if $(ONLY),--only '$(ONLY)') $(if $(MINUTES),--minutes $(MINUTES))
ifeq ($(origin PYTHON),command line)
gpu:
	$(LINKED)
	rm -rf build/site
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --no-index --target build/site . || \
	  echo "not installed (setuptools ≥ 77 can); running from the checkout, without the compiled module"
	PYTHONPATH=build/site:build/linked $(PYTHON) -m simclr_engine.bench.gpu $(GPU_FLAGS)
else
gpu: $(READY)
	$(BIN)/python -m simclr_engine.bench.gpu $(GPU_FLAGS)
endif

# The compiled kernels under sanitizers: memory and undefined behaviour, then races (slower: fewer cases). A compiler and
# CMake are all it needs.
CMAKE ?= cmake
sanitize:
	for kinds in address,undefined thread; do \
	  $(CMAKE) -S . -B build/sanitize-$$kinds -DSIMCLR_ENGINE_SANITIZE=$$kinds && \
	  $(CMAKE) --build build/sanitize-$$kinds --parallel || exit 1; \
	done
	build/sanitize-address,undefined/native_harness 1000
	build/sanitize-thread/native_harness 100

# 100,000 changed files for the readers of archives, images, recipes, checkpoints and ONNX metadata.
fuzz: $(READY)
	PYTHONPATH=tests $(BIN)/python -m fuzz --inputs 100000

# 200 processes killed while they train or pack, and what was lost by it; then one call after the other that fails; then
# 100 connections to `serve`, most of them hostile, on a machine that is otherwise quiet.
chaos: $(READY)
	PYTHONPATH=tests $(BIN)/python -m chaos --kills 200
	PYTHONPATH=tests $(BIN)/python -m chaos.faults
	PYTHONPATH=tests $(BIN)/python -m chaos.memory
	PYTHONPATH=tests $(BIN)/python -m chaos.hostile_runs
	PYTHONPATH=tests $(BIN)/python -m serve_load --connections 100

# The wheel as a stranger builds and installs it, with every Python of 3.11 to 3.13 that is here. Fetches packages into
# temporary environments.
wheel-check: $(READY)
	$(BIN)/python tests/wheel_check.py

clean:
	rm -rf $(VENV) build dist *.egg-info
