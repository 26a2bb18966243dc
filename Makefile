PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CHECKED := optimum_camcut tests examples

# Idle threads sleep: by default they spin, which on shared cores makes training several times slower.
export OMP_WAIT_POLICY := passive

.PHONY: help demo test test-faults style clean
.DEFAULT_GOAL := help

help:  ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: $(INSTALLED)  ## Fine-tune, prune and recover a real model; print dense against pruned
	$(BIN)/python examples/demo.py

# Two workers with one thread each: torch would otherwise start a thread per core in every worker.
test: style  ## Check the style, then run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-faults: $(INSTALLED)  ## Kill training at 20 points of each kind of run, resume, compare
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_and_resume.py --kills 20

style: $(INSTALLED)  ## Check the style with ruff
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)

clean:  ## Remove the environment, the fetched model and all outputs
	rm -rf $(VENV) .cache outputs build *.egg-info .pytest_cache .ruff_cache .hypothesis

# The stamp is written last, so that an interrupted installation starts again.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[tests,examples]"
	@touch $@
