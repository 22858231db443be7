# Needs make and Python 3.11 or newer; everything else goes into .venv, at the versions of constraints.txt.
# Another interpreter: make install PYTHON=/path/to/python3.11
# Options for pip (an index, a cache): make install PIP_OPTIONS="--index-url ..."

PYTHON ?= python3.11 python3
PIP_OPTIONS ?=
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed

# What make demo needs, under 2 GB with torch's CPU build; tests need the other extras too.
LIGHT := .venv/.light
LIGHT_EXTRAS := torch,operon,report
EXTRAS := torch,tf,operon,pysr,dask,onnx,optimizers,tensorboard,bench,report,dev

.PHONY: install light demo test test-slow test-faults test-lowest lint reference clean

install: $(STAMP)

light: $(LIGHT)

.venv/bin/python:
	@found=; for python in $(PYTHON); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "expected Python 3.11 or newer, found none among: $(PYTHON);" \
	    "install it, or name it: make install PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	echo "installing into .venv with $$found; the first time takes a few minutes"; \
	$$found -m venv .venv

$(LIGHT): setup.cfg pyproject.toml constraints.txt | .venv/bin/python
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_OPTIONS) \
	  -c constraints.txt -e ".[$(LIGHT_EXTRAS)]"
	@touch $@

$(STAMP): setup.cfg pyproject.toml constraints.txt | .venv/bin/python
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_OPTIONS) \
	  -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: $(if $(wildcard $(STAMP)),$(STAMP),$(LIGHT))
	$(BIN)/python -m torch_impl.demo --overwrite

# Small arrays: more threads only wait for each other. Tests of a file share what they make.
test test-slow test-faults: export OMP_NUM_THREADS = 1
test test-slow test-faults: export OMP_WAIT_POLICY = PASSIVE

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# What faults do, counted: L2O_FAULTS is the part of it that is run, L2O_FAULTS_SEED draws other cases,
# L2O_FAULTS_SOAK is in seconds. Hard gradients are the same for any seed.
FAULTS = tests/faults tests/parity/test_hard_gradients.py
test-faults: export L2O_FAULTS ?= 1
test-faults: export L2O_FAULTS_SOAK ?= 3600
test-faults: $(STAMP)
	$(BIN)/python -m pytest $(FAULTS)

# Minutes and gigabytes: the lowest versions of setup.cfg's ranges, in a .venv of their own.
test-lowest:
	PYTHON="$(firstword $(PYTHON))" PIP_OPTIONS="$(PIP_OPTIONS)" WORKERS=$(WORKERS) .ci/lowest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The API's pages, made from docstrings.
REFERENCE ?= build/reference
MODULES = find common interchange torch_impl tf_impl -name '*.py' ! -name __main__.py \
  | sed 's:/__init__.py$$::; s:\.py$$::; s:/:.:g' | sort

reference: $(STAMP)
	@$(BIN)/python -W ignore -m pdoc --docformat google --output-directory $(REFERENCE) $$($(MODULES))
	@echo "$(REFERENCE)/index.html"

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info .pytest_cache .ruff_cache .coverage coverage.xml
	find common interchange torch_impl tf_impl tests -name __pycache__ -type d -prune -exec rm -rf {} +
