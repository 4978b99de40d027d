# `make` lists the targets. Every target that needs the environment creates it first.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp
TYPECHECK := build/typecheck
INCLUDE := import sysconfig; print(sysconfig.get_path('include'))

.PHONY: help env demo test test-fast test-torch lint format bench wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## create or update .venv

# Compiled here, as images and CI often have PYTHONDONTWRITEBYTECODE set: then every start of the command would compile
# all modules anew, which takes a third of its time.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard native/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q rayds formats ops launchers
	@$(BIN)/python -c 'import rayds._files, rayds.formats._jsonscan' 2>/dev/null || \
	  echo 'note: the compiled parts could not be built (a C compiler and Python.h are needed); rayds works without, slower'
	@touch $@

demo: $(STAMP) ## run the demonstration
	$(BIN)/python examples/demo.py

test: $(STAMP) ## run all tests
	$(BIN)/python -m pytest -q

test-fast: $(STAMP) ## run the tests that take no more than a few seconds each
	$(BIN)/python -m pytest -q -m "not slow"

# Not part of `env`: the torch that package indexes give a Linux machine brings several GB of GPU libraries. An index of
# CPU builds is named like this: make test-torch TORCH_ARGS='--index-url URL' (the URL stands on pytorch.org).
TORCH_ARGS ?=

test-torch: $(STAMP) ## install torch, and run the tests that need it (skipped without it)
	$(BIN)/python -c 'import torch' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH_ARGS) 'torch>=2.4,<3'
	$(BIN)/python -m pytest -q tests/test_training_torch.py

# Types are checked on the unpacked wheel, as mypy does not follow [tool.setuptools.package-dir] in a checkout;
# it runs inside that folder, so that it sees neither the checkout nor the editable install.
lint: $(STAMP) ## check style, formatting, the wheel's contents and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(CC) -std=c11 -Wall -Wextra -Werror -fsyntax-only -I"$$($(BIN)/python -c "$(INCLUDE)")" native/*.c
	@rm -rf build/lib* build/bdist.* build/temp.* build/wheel $(TYPECHECK)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w build/wheel .
	@$(BIN)/python -m zipfile -e build/wheel/rayds-*.whl $(TYPECHECK)
	@diff <(find rayds formats ops launchers -name '*.py' -o -name py.typed | sed 's,^rayds/,,' | sort) \
	      <(cd $(TYPECHECK)/rayds && find . -name '*.py' -o -name py.typed | sed 's,^\./,,' | sort) \
	  || { echo 'the wheel (>) and the checkout (<) differ: see packages in pyproject.toml' >&2; exit 1; }
	cd $(TYPECHECK) && MYPYPATH=$(CURDIR)/$(TYPECHECK) $(CURDIR)/$(BIN)/mypy --strict \
	  --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p rayds

format: $(STAMP) ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run the benchmarks
	$(BIN)/python benchmarks/run.py

# Without the compiled parts, as the nodes may be of another kind than this machine.
wheel: $(STAMP) ## build dist/rayds-*.whl, which cluster.yaml installs
	@rm -rf build/lib* build/bdist.* build/temp.* dist
	RAYDS_PURE_PYTHON=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .

clean: ## remove builds, caches and outputs; the environment stays
	rm -rf build dist *.egg-info demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
