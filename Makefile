# On a fresh machine with Python 3.11 or newer: `make demo` runs the main job, `make test` the tests.
# Another Python: make PYTHON=python3.12 ...
# Other arguments for pip, here torch without CUDA: make PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" ...

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
SCALE ?= smoke
GPU_DATA ?= $(PATHLENS_DATA)
GPU_ARGS ?=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types pytest docs gallery bench studies gpu clean

help:
	@echo "make demo    set everything up and delete every block of the network that comes with pathlens; output in demo/"
	@echo "make test    set everything up, then lint, types and tests"
	@echo "make studies SCALE=smoke|cpu|paper    run all studies; smoke takes minutes and its numbers mean nothing"
	@echo "make gpu     what only a GPU can show, nine minutes at a time; with PATHLENS_DATA, or GPU_DATA=, the folder of cifar10-jpeg/"
	@echo "make docs    the documentation with the reference of all names and options, as pages in site/"
	@echo "make gallery the pictures of docs/gallery.md again"
	@echo "make setup | lint | types | pytest | bench | clean"

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "pathlens needs Python 3.11 or newer and $(PYTHON) is %d.%d; give another by make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The stamps are written last, so that an interrupted installation is taken up again.
$(VENV)/.installed: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[docs]'
	@touch $@ $(VENV)/.installed

setup: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/pathlens delete-blocks --out demo

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

# One process for each core, a test file at a time, so that what a file prepares is prepared once; tests/conftest.py puts
# the longest files first. Without the tests that take more than a few seconds: .venv/bin/pytest -n auto --dist loadfile -m "not slow"
pytest: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile

# All three, also where one fails, so that one run tells everything; fails if any does.
test: $(VENV)/.installed-test
	@failed=; for step in lint types pytest; do \
	    $(MAKE) --no-print-directory $$step || failed="$$failed $$step"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -E -W --keep-going docs site

# Each picture by the code that stands above it; the working folder is where the code saves them.
gallery: $(VENV)/.installed
	cd docs/images && sed -n '/^```python$$/,/^```$$/{/^```/!p}' ../gallery.md | $(abspath $(BIN))/python - && rm gallery/*.pdf

bench: $(VENV)/.installed
	$(BIN)/python -m studies.benchmarks.first_table --out results/benchmarks
	$(BIN)/python -m studies.benchmarks.sweep --out results/benchmarks
	$(BIN)/python -m studies.benchmarks.paths --out results/benchmarks
	$(BIN)/python -m studies.benchmarks.training --out results/benchmarks
	$(BIN)/python -m studies.benchmarks.signal --out results/benchmarks
	$(BIN)/python -m studies.benchmarks.surface --out results/benchmarks

# Smoke runs go into a folder of their own, because their numbers mean nothing. Critics takes tables of pretrained_resnets.
STUDIES := veit2016 pretrained_resnets critics depth_in_training wider_or_deeper udl11 civitelli2021 language li2018 blockdrop strict_resnets
studies: $(VENV)/.installed-test
	@failed=; for study in $(STUDIES); do \
	    $(BIN)/python -m studies.$$study --scale $(SCALE) $(if $(filter smoke,$(SCALE)),--out runs/smoke/$$study) || \
	        failed="$$failed $$study"; \
	done; \
	$(if $(filter smoke,$(SCALE)),,$(BIN)/python -m studies.findings || failed="$$failed findings";) \
	[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

# A Python that sees a GPU and has everything is taken as it is, since machines with GPUs are often without a network.
READY := import sys; sys.path.insert(0, "."); import torch, pathlens.cli, pathlens.figures; sys.exit(not torch.cuda.is_available())
gpu:
	@python=$(PYTHON); $$python -c '$(READY)' 2>/dev/null || { $(MAKE) --no-print-directory setup && python=$(BIN)/python; } && \
	    $$python -m studies.gpu --out results/gpu --data "$(GPU_DATA)" $(GPU_ARGS)

clean:
	rm -rf $(VENV) demo site build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
