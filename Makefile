# `make demo` and `make test` do all set-up themselves: a venv in .venv, the C++ build, the default model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(wildcard src/ventoux/cpu/kernels/*)
# An editable install knows the files that were there: another list of files, another install.
FILES := $(shell find src -name '*.py' | sort | cksum | cut -d ' ' -f 1)
RUN := $(VENV)/.run-$(FILES)
DEVELOP := $(VENV)/.develop-$(FILES)

.PHONY: setup demo test slow lint format bench clean

demo: $(RUN)  ## the default model answers a question on this machine's CPU
	$(BIN)/ventoux chat --message "What is the capital of France?" --temperature 0

test: $(DEVELOP)  ## the tests that take seconds
	$(BIN)/python -m pytest -q

slow: $(DEVELOP)  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

lint: $(DEVELOP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEVELOP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(RUN)  ## prefill and decode speed of the default model
	$(BIN)/ventoux bench --prompt 512 --new 32 --repeat 3

setup: $(DEVELOP)  ## everything for development

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

# pip compiles what it installs, but not what is editable: where Python may not write bytecode, each start would compile it.
$(RUN): $(VENV)/.made $(SOURCES)
	$(BIN)/python -m pip install -q -e . -c constraints.txt
	$(BIN)/python -m compileall -q src
	$(BIN)/ventoux pull
	touch $@

$(DEVELOP): $(RUN)
	$(BIN)/python -m pip install -q -e '.[test,lint]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis src/ventoux/cpu/_kernels*.so
