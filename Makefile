# `make demo` and `make test` do all set-up themselves: a venv in .venv, the C++ build, the default model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(wildcard src/ventoux/cpu/kernels/*)

.PHONY: setup demo test slow lint format bench clean

demo: $(VENV)/.demo  ## the default model answers a question on this machine's CPU
	$(BIN)/ventoux chat --message "What is the capital of France?" --temperature 0

test: $(VENV)/.setup  ## the tests that take seconds
	$(BIN)/python -m pytest -q

slow: $(VENV)/.setup  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.demo  ## prefill and decode speed of the default model
	$(BIN)/ventoux bench --prompt 512 --new 32 --repeat 3

setup: $(VENV)/.setup  ## everything for development

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.venv $(SOURCES)
	$(BIN)/python -m pip install -q -e . -c constraints.txt
	$(BIN)/ventoux pull
	touch $@

$(VENV)/.setup: $(VENV)/.demo
	$(BIN)/python -m pip install -q -e '.[test,lint]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis src/ventoux/cpu/_kernels*.so
