# The front door. `make` lists what there is; `make demo` on a fresh clone does everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Named after what was installed: when one of these files changes, so does the stamp, and setup runs again.
STAMP := $(VENV)/.installed-$(shell cat setup.cfg pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
ARGS ?=
# As many tests at once as there are cores, at most four: each process holds a gigabyte.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal
LMMS := .venv-lmms/bin
VLLM := .venv-vllm

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check-model test-gpu test-vllm lint types train sweep eval-lmms clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install everything, once

$(STAMP):
	@echo "installing into $(VENV), once: some minutes, most of them silent"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup ## the main job on the embedded data and model, five to ten minutes on a laptop
	$(BIN)/python train.py task_mix=proxy reward=combined $(ARGS)

test: setup ## the fast tests
	$(PYTEST) -m 'not slow' $(ARGS)

test-all: setup ## every test, with coverage
	$(PYTEST) --cov=vidbridge $(ARGS)

test-gpu: setup ## those that need a CUDA device; skipped with a reason where there is none
	$(BIN)/python -m pytest -m gpu -rs tests/gpu $(ARGS)

test-vllm: ## rollout=vllm on a real vLLM for CPUs, in .venv-vllm
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@DS_BUILD_OPS=0 $(VLLM)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(VLLM)/bin/python -m pip install --quiet --no-deps --requirement tests/vllm/requirements.txt
	@$(VLLM)/bin/python tests/vllm/torchvision_without_cuda.py
	OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1 $(VLLM)/bin/python -m pytest tests/vllm $(ARGS)

lint: setup ## flake8, import order, floors of the house
	$(BIN)/python -m flake8
	$(BIN)/isort --check-only --diff .
	$(BIN)/lint-imports

types: setup ## mypy
	$(BIN)/mypy

train: setup ## one run: make train ARGS='task_mix=qa seed=1'
	$(BIN)/python train.py $(ARGS)

sweep: setup ## many runs: make sweep ARGS='task_mix=qa,proxy seed=0,1'
	$(BIN)/python train.py -m $(ARGS)

check-model: setup ## is what is assumed of a model true? make check-model ARGS='model=qwen2_5_vl_7b model.path=..'
	$(BIN)/python -m vidbridge.check_model $(ARGS)

eval-lmms: setup ## lmms-eval in .venv-lmms: make eval-lmms MODEL=outputs/../model TASKS=videomme
	@test -n '$(MODEL)' || { echo 'which model? make eval-lmms MODEL=outputs/../model TASKS=videomme,mvbench'; exit 2; }
	@test -x $(LMMS)/python || $(PYTHON) -m venv .venv-lmms
	@$(LMMS)/python -m pip install --quiet 'lmms-eval[video-legacy]==0.7.3'
	$(BIN)/python -m experiments.lmms_eval '$(MODEL)' $(if $(TASKS),--tasks '$(TASKS)') $(ARGS)

clean: ## remove runs, caches and generated data (keeps .venv)
	rm -rf outputs .cache wandb build *.egg-info .pytest_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
