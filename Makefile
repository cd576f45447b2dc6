# One thread, set on purpose: where processes compete for cores, more threads cost many times the wall time.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# deepspeed compiles its operators at first use, never at installation.
export DS_BUILD_OPS = 0

PYTHON ?= $(shell python3.11 -c "" 2>/dev/null && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.egrpo-setup
LOCK_VENV := build/lock-venv
SWEEPS := $(filter-out _study,$(basename $(notdir $(wildcard conf/sweep/*.yaml))))
STUDIES := $(SWEEPS) findings
# The torch release to lock; every other version follows from pyproject.toml.
TORCH ?= 2.13.0

.DELETE_ON_ERROR:
.PHONY: help setup train test test-slow campaign studies-quick findings-quick bench bench-gpu lint typecheck format lock check-python clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make .venv from requirements.lock, once; again when the lock or pyproject.toml changes

# The stamp goes first and comes back last, so an interrupted set-up is never taken for a whole one.
# torch is installed alone, so that pip takes the build (CPU or CUDA) this machine offers, with that build's own needs.
# setuptools next: packages without a wheel are then built by the locked one, with torch in sight.
$(STAMP): requirements.lock pyproject.toml setup.py | check-python
	rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet "$$(grep '^setuptools==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --no-build-isolation -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "egrpo needs Python 3.11 or newer, but '$(PYTHON)' is older or missing: name another with 'make PYTHON=/path/to/python3.11 setup'." >&2; exit 1; }

train: $(STAMP) ## Train; overrides in ARGS, e.g. make train ARGS="seed=1 trainer.max_steps=20"
	$(BIN)/python -m egrpo.train +experiment=shapes_eg_grpo $(ARGS)

test: $(STAMP) ## Run the fast tests, on up to four cores; pytest arguments in ARGS
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: $(STAMP) ## Run the slow tests, then studies-quick; with pytest arguments in ARGS the tests alone
	$(BIN)/python -m pytest -m slow $(ARGS)
	$(if $(ARGS),,$(MAKE) studies-quick)

campaign: $(STAMP) ## Try hostile and odd inputs of all commands; ARGS="only=convert" for some
	$(BIN)/python -m tests.campaign $(ARGS)

# A study's own command stands in its yaml's header. What an earlier call left is removed, or it would be gone on with.
studies-quick: $(STAMP) ## Run every study in its quick form, and collect it; STUDIES="method cot" for some
	rm -rf outputs/studies_quick
	for study in $(filter $(SWEEPS),$(STUDIES)); do \
	  start=$$(date +%s); words=$$(sed -n 's/^# command:  python -m egrpo.train -m //p' conf/sweep/$$study.yaml); \
	  WANDB_SILENT=true $(BIN)/python -m egrpo.train -m $$words +sweep/size=quick >/dev/null || exit 1; \
	  echo "$$study: $$(( $$(date +%s) - start )) s"; \
	done
	for folder in $$(ls -d outputs/studies_quick/*/ 2>/dev/null); do $(BIN)/python -m egrpo.collect sweep=$$folder || exit 1; done
	$(if $(filter findings,$(STUDIES)),$(MAKE) findings-quick)

findings-quick: $(STAMP)
	start=$$(date +%s); \
	$(BIN)/python -m egrpo.analyze -m +experiment=analysis_method_quick "seed=range(2)" >/dev/null && \
	$(BIN)/python -m experiments.findings outputs/studies_quick/findings outputs/studies_quick/findings && \
	echo "findings: $$(( $$(date +%s) - start )) s"

bench: $(STAMP) ## A training step beside the published procedure; ARGS="shape=small" for more than the shapes model
	$(BIN)/python -m experiments.speed $(ARGS)

bench-gpu: $(STAMP) ## The 1B and 7B shapes on an accelerator, under 8 minutes; ARGS="dry_run=true" tries it on a CPU
	$(BIN)/python -m experiments.speed.decoding shape=janus_pro_1b repeats=1 "ways=[eager,captured,compiled]" $(ARGS)
	$(BIN)/python -m experiments.speed.decoding shape=janus_pro_7b repeats=1 "ways=[eager,captured,compiled]" $(ARGS)
	$(BIN)/python -m experiments.speed shape=janus_pro_1b repeats=3 $(ARGS)

lint: $(STAMP) ## Check style, formatting and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

typecheck: $(STAMP) ## Check types only
	$(BIN)/mypy

format: $(STAMP) ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock: check-python ## Write requirements.lock anew from pyproject.toml, in a clean environment
	rm -rf $(LOCK_VENV)
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet "torch==$(TORCH)"
	$(LOCK_VENV)/bin/python -m pip install --quiet --upgrade setuptools
	$(LOCK_VENV)/bin/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	@{ echo "# Written by 'make lock' (Python 3.11 or newer, Linux): every package that egrpo and its dev extra need, at one version."; \
	   echo "# 'make setup' installs torch first and alone, in the build (CPU or CUDA) that the machine's pip offers;"; \
	   echo "# what only a CUDA build needs (nvidia-*, cuda-*, triton) comes with it and is left out here."; \
	   $(LOCK_VENV)/bin/python -m pip freeze --all --exclude pip --exclude egrpo --exclude-editable \
	     | sed 's/+[A-Za-z0-9.]*$$//' | grep -vE '^(nvidia-|cuda-|triton)'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf $(LOCK_VENV)

clean: ## Remove caches and build products; keeps .venv and outputs/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find egrpo tests experiments -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
