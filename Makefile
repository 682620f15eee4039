# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Test files that run at a time; a training in one of them has up to four processes of its own.
WORKERS ?= 2

.PHONY: demo test test-long lint setup benchmarks clean

demo: setup
	$(BIN)/python -m launch.demo --out runs

test: setup lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long"

# The rest: the README's commands, sweeps and studies that are killed, resumes on three and four ranks, and such.
test-long: setup
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmarks: setup
	$(BIN)/python -m pytest tests/benchmarks -s

setup: $(STAMP)

# pip runs again only when what it would install has changed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("fdtrain needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info
