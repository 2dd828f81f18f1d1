# make run [RECIPE=name] [INPUT=url] [OUTPUT=out] [ARGS="--set training.epochs=3"]   the whole pipeline on this machine
# make install                                                                    the virtual environment alone
# make test [TESTS=tests/fisher]                                                  the test suite
# make chaos                                                                      fault-injection tests, about 40 minutes
# make check                                                                      style, types, import contracts
# make bench                                                                      benchmarks against other libraries
# make cluster                                                                    a Ray head and MLflow; then cluster/local stop
# make clean                                                                      remove the virtual environment and caches
PYTHON ?= python3
VENV   ?= .venv
RECIPE ?=
INPUT  ?=
OUTPUT ?= out
ARGS   ?=
TESTS  ?=
BIN    := $(VENV)/bin

.PHONY: help install run test chaos check bench cluster clean
help:
	@sed -n 's/^# //p' Makefile

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@echo "installing into $(VENV) (takes a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.installed

run: install
	@$(BIN)/raymerge run $(if $(RECIPE),--recipe $(RECIPE)) --output $(OUTPUT) $(if $(INPUT),--input $(INPUT)) $(ARGS)

test: install
	@$(BIN)/python -m pytest $(TESTS)

chaos: install
	@$(BIN)/python -m pytest -m chaos -vv --durations=0 --durations-min=5

check: install
	$(BIN)/ruff check raymerge jobs tests
	$(BIN)/ruff format --check raymerge jobs tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: install
	@for script in tests/bench/bench_*.py; do PYTHONPATH=tests/support $(BIN)/python $$script || exit 1; done

cluster: install
	@PYTHON=$(abspath $(BIN))/python cluster/local start

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
