# Everything happens in .venv, made from the Python found first among these; `make PYTHON=... setup` picks another.
PYTHON ?=
PYTHONS = $(PYTHON) python3 python3.13 python3.12 python3.11
BENCHMARKS = runs/benchmarks

.PHONY: help setup demo test test-slow test-adapters lint format bench bench-in-graph bench-offline lock clean
.DEFAULT_GOAL := help

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: .venv/.installed ## create .venv and install the locked dependencies and rljax into it
	@echo "Ready: .venv/bin/python"

demo: .venv/.installed ## train PPO on CartPole, evaluate, export, serve, ask it for actions; under four minutes
	@.venv/bin/python -m launch.demo

test: .venv/.installed ## run the test suite without the slow tests
	@.venv/bin/pytest -n 2 --dist loadfile

test-slow: .venv/.installed ## run the slow tests: agents that must solve small tasks
	@.venv/bin/pytest -m slow

test-adapters: .venv-adapters/.installed ## test the environments of gymnax, Brax, Playground and navix, in .venv-adapters
	@.venv-adapters/bin/pytest -rs tests/rljax/envs/test_adapters.py

lint: .venv/.installed ## style, format, types, and the direction of imports
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/pyright
	@.venv/bin/lint-imports

format: .venv/.installed ## rewrite the code in the house style
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: .venv/.installed .venv-bench/.installed ## measure PPO against the raw pool, Stable-Baselines3 and SBX
	@mkdir -p $(BENCHMARKS)
	@.venv/bin/python -m launch.benchmark ppo --output=$(BENCHMARKS)/ppo.json

bench-in-graph: .venv/.installed .venv-rejax/.installed ## measure training in the graph against rejax
	@mkdir -p $(BENCHMARKS)
	@.venv/bin/python -m launch.benchmark in_graph --output=$(BENCHMARKS)/in_graph.json

bench-offline: .venv/.installed .venv-d3rlpy/.installed ## measure learning from a dataset against d3rlpy
	@mkdir -p $(BENCHMARKS)
	@.venv/bin/python -m launch.benchmark offline_speed --output=$(BENCHMARKS)/offline_speed.json

lock: .venv/.installed ## resolve the dependencies in pyproject.toml anew into requirements.lock
	@.venv/bin/pip install --quiet --disable-pip-version-check uv
	@head -n 1 requirements.lock > requirements.lock.new
	@.venv/bin/uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 \
	    --no-header --no-annotate --no-emit-index-url --extra dev --output-file .venv/resolved.txt pyproject.toml
	@sed "/python_full_version >= '3.14'/d" .venv/resolved.txt >> requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean: ## remove the environments and caches; runs/ and models/ stay
	@rm -rf .venv .venv-bench .venv-rejax .venv-d3rlpy .cache .pytest_cache .ruff_cache .import_linter_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Tries each interpreter by running it: a name on the path may be a stub that only says "not installed".
CREATE_VENV = \
	test -x $(@D)/bin/pip && exit 0; \
	for python in $(PYTHONS); do \
	    $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue; \
	    echo "Creating $(@D) with $$($$python --version)"; \
	    $$python -m venv --clear $(@D) && exit 0; \
	    echo "$$python cannot make a virtual environment: install its venv module (on Debian and Ubuntu, the package python3-venv)." >&2; \
	    exit 1; \
	done; \
	echo "rljax needs Python 3.11, 3.12 or 3.13, and python3 is $$(python3 --version 2>/dev/null || echo missing): install one of them, or name it: make setup PYTHON=/path/to/python3.12" >&2; \
	exit 1

.venv/.installed: requirements.lock pyproject.toml
	@$(CREATE_VENV)
	@echo "Installing $$(grep -c == requirements.lock) packages into .venv: a download of about 1 GB the first time, some minutes"
	@.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.lock
	@.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv-bench/.installed: requirements-bench.txt
	@$(CREATE_VENV)
	@echo "Installing Stable-Baselines3, SBX and PyTorch into .venv-bench: some minutes"
	@.venv-bench/bin/pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@

.venv-rejax/.installed: requirements-rejax.txt
	@$(CREATE_VENV)
	@echo "Installing rejax and Gymnax into .venv-rejax: some minutes"
	@.venv-rejax/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-rejax.txt
	@touch $@

.venv-d3rlpy/.installed: requirements-d3rlpy.txt
	@$(CREATE_VENV)
	@echo "Installing d3rlpy and PyTorch into .venv-d3rlpy: some minutes"
	@.venv-d3rlpy/bin/pip install --quiet --disable-pip-version-check -r requirements-d3rlpy.txt
	@touch $@

.venv-adapters/.installed: requirements.lock pyproject.toml
	@$(CREATE_VENV)
	@echo "Installing rljax with gymnax, Brax, Playground and navix into .venv-adapters: some minutes"
	@.venv-adapters/bin/pip install --quiet --disable-pip-version-check -r requirements.lock
	@.venv-adapters/bin/pip install --quiet --disable-pip-version-check --no-build-isolation -c requirements.lock -e '.[gymnax,brax,playground,navix]'
	@touch $@
