# Every target works as the first command on a machine with Python 3.11 or newer and make.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= $(shell python3.11 -c 'pass' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

# The peer of `make bench-peer` and `make bench-goal` is a library that needs older neighbours than the suite does; what
# both can share, they share at the same version.
PEER := trl==0.23.1 diffusers==0.35.2 transformers==4.57.6 huggingface_hub==0.36.2 datasets==5.0.1 fsspec==2026.6.0
PEER_SHARED := accelerate numpy pandas peft pillow pyarrow pyyaml safetensors scipy torch

OBJECTIVES := scenes-discounted-dpo scenes-diffusion-dpo scenes-dspo scenes-cal-dpo scenes-forward-rl

.PHONY: help setup demo test test-change test-all check fix docs bench bench-gpu bench-peer bench-goal clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/.installed ## environment in .venv with the package and its tools; installs nothing when up to date

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "expected Python 3.11 or newer, got %d.%d: make setup PYTHON=/path/to/python3.11" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## align the bundled model three ways at an equal budget, and see which moves it how far
	$(BIN)/raysuite sweep scenes-demo --out runs/demo
	@echo "The report is $(CURDIR)/runs/demo/comparison.html: open it in a browser."

test: setup ## the quick tests, on all cores
	$(PYTEST) -m "not slow and not exhaustive"

test-change: setup ## the tests that a change must pass: the slow ones too
	$(PYTEST) -m "not exhaustive"

test-all: setup ## all tests
	$(PYTEST)

check: setup ## lint, format and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: setup ## mend what lint and format can mend by themselves, show the rest
	$(BIN)/ruff check --fix --exit-zero --quiet . > /dev/null
	$(BIN)/ruff format .
	$(BIN)/ruff check .

docs: setup ## the documents as a site in build/docs; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "The site is $(CURDIR)/build/docs/index.html"

bench: setup ## how fast the suite is on this machine
	$(BIN)/python jobs/bench.py
	$(BIN)/python jobs/bench.py --turns 5 --objectives scenes-ddpo $(OBJECTIVES)

bench-gpu: setup ## how fast the suite is on one GPU with CUDA, and what it holds
	$(BIN)/python jobs/bench_gpu.py

bench-peer: setup .venv-peer/.installed ## the same training in the suite and in a peer library, timed
	$(BIN)/python jobs/bench_peer.py --peer .venv-peer/bin/python

bench-goal: setup .venv-peer/.installed ## seconds of training until the model is so much better, in the suite and in the peer
	$(BIN)/python jobs/bench_goal.py --peer .venv-peer/bin/python

.venv-peer/.installed: Makefile constraints.txt
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --disable-pip-version-check $(PEER) \
		$$(for name in $(PEER_SHARED); do grep -i "^$$name==" constraints.txt; done)
	@touch $@

clean: ## remove environments, caches and builds; runs stay
	rm -rf .venv .venv-peer build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . \( -name .git -o -name runs \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
