# Every target works alone on a fresh machine: each needs the stamp, and the stamp fills the venv.

VENV     ?= .venv
PYTHON   ?= $(shell for python in python3.11 python3; do \
              $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
                2>/dev/null && echo $$python && break; done)
PLATFORM ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
# The CPU builds of torch are not on PyPI; used where the configured index has none.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip --disable-pip-version-check
LOCK  := requirements/$(PLATFORM).txt
STAMP := $(VENV)/.installed-$(PLATFORM)

# What `make serve` and the others are given beside their defaults, e.g. `make serve ARGS='--port 9000'`.
ARGS ?=

.PHONY: help setup serve test test-fast lint lint-deploy types format train bench bench-drafts bench-gpu load soak lock lock-cuda wheel clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create and fill .venv: CUDA where there is an NVIDIA GPU, else CPU

$(STAMP): pyproject.toml $(LOCK) requirements/dev.txt
	@test -n "$(PYTHON)" || { echo 'needed: Python 3.11, or make PYTHON=/path/to/it' >&2; exit 1; }
	@echo 'installing into $(VENV) from $(LOCK): some minutes the first time'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(PLATFORM),cpu)
	@torch=$$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' $(LOCK)); \
	  $(PIP) install -qq --no-compile --no-deps "$$torch" 2>/dev/null \
	  || $(PIP) install -qq --no-compile --no-deps --index-url $(TORCH_CPU_INDEX) "$$torch"
endif
	$(PIP) install -qq --no-compile --no-deps -r $(LOCK) -r requirements/dev.txt
	$(PIP) install -qq --no-compile --no-deps --no-build-isolation -e .
	@touch $@

serve: $(STAMP)  ## the server on port 8000, with the embedded model
	$(BIN)/zipar serve $(ARGS)

test: $(STAMP)  ## the tests
	$(BIN)/python -m pytest $(ARGS)

test-fast: $(STAMP)  ## the tests that start no engine and no server, but for the slowest files: under a minute
	$(BIN)/python -m pytest -m "not engine and not live and not slow" $(ARGS)

lint: $(STAMP) lint-deploy  ## ruff's rules and formatting, who may import whom, and lint-deploy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

$(VENV)-deploy/.installed: requirements/deploy.txt
	@test -x $(VENV)-deploy/bin/python || $(PYTHON) -m venv $(VENV)-deploy
	$(VENV)-deploy/bin/pip install -qq -r requirements/deploy.txt
	@touch $@

lint-deploy: $(VENV)-deploy/.installed  ## hadolint, dclint, kubectl, promtool, nginx on deploy/
	PATH="$(abspath $(VENV)-deploy/bin):$$PATH" deploy/lint.sh

format: $(STAMP)  ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

train: $(STAMP)  ## the demo model's recipe, from the data to the files, in build/training (hours)
	$(BIN)/python -m training.run $(ARGS)

bench: $(STAMP)  ## measure ZipAR beside stock vLLM
	$(BIN)/python -m benchmarks.latency $(ARGS)

bench-drafts: $(STAMP)  ## measure drafts beside none, and beside stock vLLM
	$(BIN)/python -m benchmarks.drafts $(ARGS)

# Each part on its own, and eight minutes at most: what fails or takes longer keeps none of the others.
bench-gpu: $(STAMP)  ## on a GPU: its tests, what they compile to, attention, steps, beside stock vLLM
	-timeout 480 $(BIN)/python -m pytest -m gpu
	-timeout 480 $(BIN)/python -m pytest -m "not gpu" tests/attention tests/engine/test_attention_backend.py \
	  tests/decoding/test_triton_*.py tests/decoding/test_graphs.py
	-timeout 480 $(BIN)/python -m benchmarks.gpu.compiled --processes 8
	-timeout 480 $(BIN)/python -m benchmarks.gpu.kernel
	-timeout 480 $(BIN)/python -m benchmarks.gpu.step
	-timeout 480 $(BIN)/python -m benchmarks.gpu.engines

$(VENV)-load/.installed: requirements/load.txt
	@test -x $(VENV)-load/bin/python || $(PYTHON) -m venv $(VENV)-load
	$(VENV)-load/bin/pip install -qq --no-compile --no-deps -r requirements/load.txt
	@touch $@

load: $(STAMP) $(VENV)-load/.installed  ## load tests: AIPerf against a server
	PATH="$(abspath $(VENV)-load/bin):$$PATH" $(BIN)/python -m benchmarks.load $(ARGS)

soak: $(STAMP) $(VENV)-load/.installed  ## soak test: mixed requests by Locust for 20 minutes
	PATH="$(abspath $(VENV)-load/bin):$$PATH" $(BIN)/python -m benchmarks.soak $(ARGS)

wheel: $(STAMP)  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

lock: $(STAMP)  ## write requirements/ from what the venv holds: do it after the tests passed
	$(BIN)/python requirements/lock.py

lock-cuda: $(STAMP)  ## resolve requirements/cuda.txt, with cpu.txt's versions where they fit
	@command -v uv >/dev/null || { echo 'needed: uv (pip install uv)' >&2; exit 1; }
	@sed -n '/^#/p' requirements/cuda.txt >$(VENV)/cuda.head
	grep -v '^torch==' requirements/cpu.txt >$(VENV)/cuda.txt
	uv pip compile --quiet pyproject.toml --extra cuda --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_31 --no-header --no-annotate -o $(VENV)/cuda.txt
	cat $(VENV)/cuda.head $(VENV)/cuda.txt >requirements/cuda.txt

clean:  ## remove the environments and all caches
	rm -rf $(VENV) $(VENV)-deploy $(VENV)-load build/lib build/bdist.* dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage
