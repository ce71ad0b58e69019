# Two commands do all set-up: `make quickstart` and `make test`. The virtual environment lives in the clone. Nothing is
# byte-compiled when it is installed: most of it is never imported, and compiling takes minutes.
PYTHON ?= python3
BIN := .venv/bin

# Tests start many processes: without byte code, which containers often switch off, each compiles all that it imports.
test test-slow: export PYTHONDONTWRITEBYTECODE =

.PHONY: quickstart test test-slow lint bench docs clean

.venv/quickstart: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Robust Zoo needs Python 3.11 or newer") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

.venv/dev: .venv/quickstart
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-compile --no-deps 'litert-torch>=0.10' 'litert-converter>=0.5' xdsl==0.28.0
	touch $@

quickstart: .venv/quickstart  ## pick a robust student within 15 M MACs and export it to ONNX
	$(BIN)/zoo pick --flops 15M --export onnx --out bundles --force

test: .venv/dev lint  ## the quick tests, the linters and the type checker
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # the fixtures of a file are made once

test-slow: .venv/dev  ## everything, minutes long
	$(BIN)/python -m pytest -m 'slow or not slow'

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev  ## speed as ratios against peers, in one run
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[bench]'
	$(BIN)/python -m pip install --quiet --no-compile --no-deps 'torchattacks>=3.5.1'  # its pins are years old
	$(BIN)/python -m benchmarks

# Each writes the tables and figures of its page from the results that are stored beside it; nothing is measured.
# (docs/boundaries.py trains the nets of its toy problem anew: it is run by hand.)
REDRAWN := architecture figures students engines int8 corruptions methods rnascl ablations proard speed

docs: .venv/dev  ## redraw tables and figures from the stored results, then the site: build/site/index.html
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[docs]'
	for page in $(REDRAWN); do $(BIN)/python docs/$$page.py || exit 1; done
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/site

clean:
	rm -rf .venv build dist *.egg-info
