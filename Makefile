# Every habit of the project. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The Python that .venv is made with; found by itself if empty.
PYTHON ?=
# The environment: cpu or gpu. By default the one that .venv was built for, or cpu.
BUILT := $(or $(shell cat .venv/device 2>/dev/null),cpu)
DEVICE ?= $(BUILT)
# Where the CPU build of torch comes from on machines whose pip does not find it by itself.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Further options for the resolver, e.g. --upgrade-package torchmetrics.
LOCK ?=

BIN := .venv/bin

.PHONY: help
help: ## List what there is to do
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/ready: requirements/$(DEVICE).lock pyproject.toml
	@PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" tools/setup_venv.sh "$(DEVICE)"
ifneq ($(DEVICE),$(BUILT))
.PHONY: .venv/ready
endif

.PHONY: quickstart
quickstart: .venv/ready ## Train the small policy on Countdown and report what it learned
	@dir=runs/quickstart; n=2; while [ -e "$$dir" ]; do dir=runs/quickstart-$$n; n=$$((n + 1)); done; \
	set -- $(BIN)/asymgrpo fit --config configs/quickstart.yaml --run_dir "$$dir"; echo "$$*"; exec "$$@"

.PHONY: test
test: .venv/ready ## Run the tests on all cores (ten minutes on two slow ones)
	$(BIN)/python -m pytest -m "not long" -n auto --dist loadfile --no-loadscope-reorder

.PHONY: test-long
test-long: .venv/ready ## Run the tests that take long (several processes, seeds, killed runs)
	$(BIN)/python -m pytest -m long -n auto --dist loadfile --no-loadscope-reorder

.PHONY: test-faults
test-faults: .venv/ready ## Put known mistakes into a copy of the code; the tests must notice each (an hour)
	$(BIN)/python -m tests.faults.run

.PHONY: test-mutants
test-mutants: .venv/ready ## Change the algorithms in small ways; the tests must notice (20 minutes on a slow core)
	$(BIN)/python tests/algorithm/mutants.py

.PHONY: check
check: .venv/ready ## Check format, lint, types, layers, spelling and house rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	tools/house_rules.sh

.PHONY: format
format: .venv/ready ## Format the code and repair what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: lock
lock: lock-cpu lock-gpu ## Resolve the lock files again, keeping the pins that fit

RESOLVE = $(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_31 \
  --only-binary :all: --generate-hashes --no-annotate --custom-compile-command "make lock" \
  --extra dev --extra reasoning --override requirements/overrides.txt

# uv does not read pip's settings; a folder of wheels that pip knows is passed on. Without one, torch and nothing else comes
# from PyTorch's index of CPU builds, which pyproject.toml names.
.PHONY: lock-cpu
lock-cpu: .venv/ready
	@compile() { \
	  UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" $(RESOLVE) --extra cpu \
	    --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec \
	    --output-file requirements/cpu.lock pyproject.toml requirements/cpu.in $(LOCK) "$$@"; \
	}; \
	compile --no-sources || { echo "Once more, with PyTorch's index."; compile; }

# No such folder here: a build of torch for the CPU that lies in it would be taken for the newer one.
.PHONY: lock-gpu
lock-gpu: .venv/ready
	@env -u UV_FIND_LINKS $(RESOLVE) --no-sources --extra gpu \
	  --output-file requirements/gpu.lock pyproject.toml requirements/gpu.in $(LOCK)

.PHONY: sbom
sbom: .venv/ready ## Write the software bill of materials of both environments (CycloneDX) into dist
	@mkdir -p dist; for device in cpu gpu; do \
	  $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	    --output-file dist/sbom-$$device.json requirements/$$device.lock; \
	  echo "dist/sbom-$$device.json"; \
	done

.PHONY: first-gpu
first-gpu: .venv/ready ## Check and measure on a GPU what no CPU can tell (ten minutes)
	$(BIN)/python -m benchmarks.first_gpu

.PHONY: base-policy
base-policy: .venv/ready ## Make data/countdown_base again from nothing (a few minutes)
	$(BIN)/python data/make_countdown_base.py

.PHONY: tensorboard
tensorboard: .venv/ready ## Show the curves of all runs
	$(BIN)/tensorboard --logdir runs

.PHONY: clean
clean: ## Remove caches and build leftovers; keep .venv and runs
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
