SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
# compiled modules of the editable package are kept, or every start would compile them again
unexport PYTHONDONTWRITEBYTECODE
# two test processes: each computes on one thread
TEST := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -ra -q

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## +/\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once, some minutes)"; started=$$SECONDS; \
	if ! test -x $(BIN)/python; then $(PYTHON) -m venv $(VENV) || exit 1; fi; \
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' \
		2> >(grep -v 'is ignored' >&2) || exit 1; \
	touch $@; echo "installed in $$((SECONDS - started)) s"

# dictionary-learning asks for an old nnsight that it does not need: installed without its dependencies
$(PEERS_STAMP): benchmarks/constraints-peers.txt
	@echo "installing into $(PEERS) (once, some minutes)"; started=$$SECONDS; \
	if ! test -x $(PEERS)/bin/python; then $(PYTHON) -m venv $(PEERS) || exit 1; fi; \
	pip="$(PEERS)/bin/python -m pip install -q --disable-pip-version-check -c $<"; \
	{ $$pip torch sae-lens eai-sparsify nnsight matplotlib scikit-learn scikit-image opencv-python-headless && \
		$$pip --no-deps dictionary-learning overcomplete interpreto; } \
		2> >(grep -v 'is ignored' >&2) || exit 1; \
	touch $@; echo "installed in $$((SECONDS - started)) s"

install: $(STAMP)  ## create .venv and install everything

demo: $(STAMP)  ## train a dictionary on real text and show what its features mean
	@$(BIN)/saescope demo --overwrite

test: $(STAMP)  ## all tests that need only Python (and PostgreSQL, where it is found)
	$(TEST) -m "not slow"

test-slow: $(STAMP)  ## kills, browsers, wheels: tests that take longer
	$(TEST) -m slow

lint: $(STAMP)  ## style, types, import contracts
	$(BIN)/ruff check src tests reproductions benchmarks
	$(BIN)/ruff format --check src tests reproductions benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)  ## write docs/commands.md and the table of docs/formats.md
	$(BIN)/python tests/docs/commands.py docs/commands.md
	$(BIN)/python -m saescope.formats.table docs/formats.md

screenshots: $(STAMP)  ## take the pictures of docs/images (after `make demo`; needs Chromium)
	$(BIN)/python tests/docs/screenshots.py runs/demo docs/images

reproduce: $(STAMP)  ## small published results, run again; what has not changed is skipped
	$(BIN)/python -m reproductions

bundled-model: $(STAMP)  ## train the bundled model again (one to two hours)
	$(BIN)/python -m saescope.models.bundled.train runs/bundled
	$(BIN)/python -m saescope.models.bundled.card runs/bundled

peers: $(PEERS_STAMP)  ## create .venv-peers with the libraries that benchmarks compare with

bench: $(STAMP) $(PEERS_STAMP)  ## how fast training and analysis run here, beside other libraries (an hour)
	$(BIN)/python benchmarks/training_step.py --save
	$(BIN)/python benchmarks/memory.py --save
	$(BIN)/python benchmarks/pipeline.py --save
	$(BIN)/python benchmarks/walk.py --save
	$(BIN)/python benchmarks/analysis.py --save
	$(BIN)/python benchmarks/store.py --save
	$(BIN)/python benchmarks/web.py --save

.PHONY: help install demo test test-slow lint docs screenshots reproduce bundled-model peers bench
