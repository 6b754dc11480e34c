PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest

# Compile a module once, when it is first imported: the installation leaves it, and without this each process may.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow test-oldest lint format docs benchmarks architectures clean

# Fine-tune a pretrained network on photographs of solar cells, three ways. QUICK=1: fewer images and epochs.
demo: $(INSTALLED)
	$(BIN)/python examples/solar_cells.py $(if $(QUICK),--quick) $(ARGS)

# On every core, a thread each: networks as small as the tests' gain nothing by more.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n logical $(ARGS)

# The tests that take over 20 seconds each.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ARGS)

# The tests on the oldest versions that pyproject.toml admits, in an environment of their own.
test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -m "not slow" -n logical $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site, site/index.html; a warning is an error.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[docs]"
	$(BIN)/mkdocs build --strict

# What wrapping costs (minutes), and the memory and time of every method (about two hours).
benchmarks: $(INSTALLED)
	$(BIN)/python -m pip install --no-compile --editable ".[benchmarks]"
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/memory.py $(ARGS)
	$(BIN)/python benchmarks/scale.py

# What trains, and what is kept for backward, in every tested architecture; goes on where it was interrupted (20 minutes).
architectures: $(INSTALLED)
	$(BIN)/python -m tests.architectures $(ARGS)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --editable ".[demo,dev]"
	touch $@

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install uv
	$(OLDEST)/bin/uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) runs site
