# Every target makes .venv itself when it is missing; nothing else has to be installed first but Python >= 3.10.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

OLDEST := .venv-oldest
NO_VENV = { echo "'$(PYTHON) -m venv' failed. It needs Python 3.10 or newer with the module venv; on Debian and Ubuntu" \
	"that is a package of its own: sudo apt install python3-venv. Another Python: make $(MAKECMDGOALS)" \
	"PYTHON=python3.12" >&2; exit 1; }

.PHONY: demo test test-slow test-oldest check docs benchmarks results screenshots clean

demo: $(STAMP)  ## ask the ready adapter, fine-tune MiniLM without and with registers, three seeds each, and write a page about it
	$(BIN)/regtune demo

test: $(STAMP)  ## the tests that take minutes together
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --durations=10  # one thread for each of two processes

test-slow: $(STAMP)  ## the long runs, and those in a browser; not what needs a GPU or the hub
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --durations=10 -m '(slow or browser) and not gpu and not network'

test-oldest: $(OLDEST)/.installed  ## the same tests on the lowest versions that pyproject.toml admits, in an environment of their own
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -n 2 --dist worksteal -W ignore::DeprecationWarning -W ignore::FutureWarning

check: $(STAMP) docs  ## lint, types, layers, generated pages, the site, and a wheel that installs and works on its own
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/build_results.py --check
	$(BIN)/python tests/smoke_wheel.py

docs: $(STAMP)  ## the documentation as a site in build/site, which needs no network; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

results: $(STAMP)  ## write the tables and figures of README and docs/results again from the committed records
	$(BIN)/python docs/build_results.py

screenshots: $(STAMP)  ## take the pictures of the report and the explorer again (needs Chromium)
	$(BIN)/python docs/screenshot.py

benchmarks: $(STAMP)  ## measure the speed figures again (half an hour, on a machine that does nothing else)
	$(BIN)/python benchmarks/span_extraction.py
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/register_overhead.py
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/neuron_words.py
	$(BIN)/python benchmarks/training_memory.py
	$(BIN)/python benchmarks/cell_overhead.py
	$(BIN)/python benchmarks/evaluation_speed.py

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV) || $(NO_VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	@$(PYTHON) -m venv $(OLDEST) || $(NO_VENV)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt torch==2.13.0
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
