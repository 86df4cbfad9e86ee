# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= out/demo

.PHONY: demo studio test shapes test-browser check format docs clean

demo: $(VENV)/.ready
	@$(BIN)/piti translate examples/street/high_street.png --model street --num 4 --seed 0 --out $(DEMO)/street --overwrite
	@$(BIN)/piti translate examples/sketch/mountain.png --model sketch --num 4 --seed 0 --out $(DEMO)/sketch --overwrite
	@echo "One prior, two tasks: a mask beside four photographs made from it in $(DEMO)/street/sheet.png,"
	@echo "a sketch beside its four in $(DEMO)/sketch/sheet.png."

studio: $(VENV)/.ready-ui
	@$(BIN)/piti studio

test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2   # two processes of one thread each: two of two fight

shapes: $(VENV)/.ready-dev   # the tests of networks, losses and data again, every call's shapes and types checked
	PITI_CHECK_SHAPES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 \
	    tests/conditions tests/data tests/models tests/diffusion tests/checkpoints tests/prepare

test-browser: $(VENV)/.ready-dev   # the pages in Chromium; skipped by name where it is not installed
	$(BIN)/python -m pytest -m browser -rs --durations=5

check: $(VENV)/.ready-dev $(VENV)/.ready-docs   # the site's hooks are read for types too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.ready-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the documentation is in out/site/index.html"

clean:   # what make made; results that others left in out/ stay
	rm -rf $(VENV) out/demo out/site build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-ui: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[ui]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	@touch $@
