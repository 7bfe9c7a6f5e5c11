# Every target makes its own environment first: a new machine needs Python 3.11–3.13, pip and make.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo-run
REAL   ?= real-run
CORPUS ?= stdlib
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo real test slow lint format bench clean

help:
	@echo "make demo    the whole pipeline on the bundled model (about 4 minutes on two cores), into $(OUT)/"
	@echo "make real    the same on a real one, SmolLM2-135M-Instruct (about 35 minutes, CORPUS=... takes your text), into $(REAL)/"
	@echo "make test    the tests (under 5 minutes)     make slow    the long tests, too"
	@echo "make lint    ruff and pyright          make bench   measurements; see bench/README.md"

$(READY): pyproject.toml constraints.txt
	@echo "== making the environment in $(VENV) (once; torch is a large download)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "monolex needs Python 3.11 to 3.13; name one with make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	@echo "== running the demo into $(OUT)/"
	$(BIN)/monolex demo --out $(OUT)

real: $(READY)
	@echo "== running a real language model into $(REAL)/"
	$(BIN)/monolex demo --subject smollm2 --corpus "$(CORPUS)" --out $(REAL)

# A process a core with one thread each: the tests are many and small, and threads of two processes only wait.
test: $(READY)
	@echo "== running the tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

slow: $(READY)
	@echo "== running the long tests"
	$(BIN)/python -m pytest -m 'slow and not gpu'

lint: $(READY)
	@echo "== checking style and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	@echo "== measuring (see bench/README.md)"
	$(BIN)/python bench/harvest.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
