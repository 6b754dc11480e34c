PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint format benchmarks architectures clean

# Fine-tune a pretrained network on photographs of solar cells, three ways. QUICK=1: fewer images and epochs.
demo: $(INSTALLED)
	$(BIN)/python examples/solar_cells.py $(if $(QUICK),--quick) $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

# The tests that take over 20 seconds each.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What wrapping costs (minutes), and the memory and time of every method (about two hours).
benchmarks: $(INSTALLED)
	$(BIN)/python -m pip install --no-compile --editable ".[benchmarks]"
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/memory.py $(ARGS)

# What trains, and what is kept for backward, in every tested architecture; goes on where it was interrupted (20 minutes).
architectures: $(INSTALLED)
	$(BIN)/python -m tests.architectures $(ARGS)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --editable ".[demo,dev]"
	touch $@

clean:
	rm -rf $(VENV) runs
