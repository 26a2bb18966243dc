PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DOCS := $(VENV)/.installed-docs
VENV4 := .venv-transformers4
BIN4 := $(VENV4)/bin
INSTALLED4 := $(VENV4)/.installed
LIBRARIES := "import sysconfig; print(sysconfig.get_paths()['purelib'])"
CHECKED := optimum_camcut tests examples docs

# Idle threads sleep: by default they spin, which on shared cores makes training several times slower.
export OMP_WAIT_POLICY := passive

.PHONY: help demo test test-all run-tests test-faults test-engines gpu style docs clean
.DEFAULT_GOAL := help

help:  ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: $(INSTALLED)  ## Fine-tune, prune and recover a real model; print dense against pruned
	$(BIN)/python examples/demo.py

# What loads, cuts and trains, and where that goes; transformers 4 has a pruning of its own to compare with.
# Of the command line, what goes through all of it.
TESTS4 := versions models tokenizers plain_shapes surgery checkpoint auto_classes parts entries types around layers imports trainer trainer_hooks downstream hub sentence_transformers embeddings optimum
TESTS4 := $(foreach name,$(TESTS4),$(wildcard tests/test_$(name).py tests/*/test_$(name).py)) \
	$(addprefix tests/commands/test_cli.py::test_,the_whole_job every_task)

# The report is read in a real browser: Chromium and its driver (`apt-get install chromium chromium-driver`).
#
# Two workers with one thread each: torch would otherwise start a thread per core in every worker. Either environment
# starts the Python of the other one, to exchange checkpoints.
test: MARKED := not long and not engines
test: style run-tests  ## Check the style, run the tests, then those of loading, cutting and going elsewhere with transformers 4

test-all: MARKED := not engines
test-all: style run-tests test-faults  ## The same with the scripts of all benchmarks and many more kills

run-tests: $(INSTALLED4)
	OMP_NUM_THREADS=1 CAMCUT_OTHER_PYTHON=$(abspath $(BIN4))/python $(BIN)/python -m pytest -n 2 --dist worksteal -m "$(MARKED)"
	OMP_NUM_THREADS=1 CAMCUT_OTHER_PYTHON=$(abspath $(BIN))/python $(BIN4)/python -m pytest -n 2 --dist worksteal -m "($(MARKED)) and not once" $(TESTS4)

test-faults: $(INSTALLED)  ## Kill training at 20 points of each kind of run, resume, compare
	OMP_NUM_THREADS=1 $(BIN)/python tests/helpers/kill_and_resume.py --kills 20

style: $(INSTALLED)  ## Check the style with ruff and the types with mypy
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

# llama.cpp, vLLM and OpenVINO, where they are installed: CONTRIBUTING.md says how.
test-engines: $(INSTALLED4)  ## Ask the engines that take long to install, in the environments that have them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m engines -rs tests/export
	OMP_NUM_THREADS=1 $(BIN4)/python -m pytest -m engines -rs tests/export/test_optimum.py

# With the Python that is there, which has torch for its GPU: no environment is made, and nothing installed.
OUTPUT ?= outputs/gpu
gpu:  ## Check and time the package on this GPU, in at most 8 minutes; results in outputs/gpu
	$(PYTHON) examples/benchmarks/gpu/run.py --output_dir $(OUTPUT)

docs: $(INSTALLED_DOCS)  ## Build the documentation in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## Remove the environments, the fetched model and all outputs
	rm -rf $(VENV) $(VENV4) .cache outputs site build *.egg-info .pytest_cache .ruff_cache .hypothesis

# The stamp is written last, so that an interrupted installation starts again.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[tests,examples]"
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[docs]"
	@touch $@

# It sees the libraries of the other environment, and gets of its own only those that transformers 4 takes older, and
# optimum-onnx, which wants transformers 4.
$(INSTALLED4): $(INSTALLED)
	$(PYTHON) -m venv $(VENV4)
	$(BIN)/python -c $(LIBRARIES) > "$$($(BIN4)/python -c $(LIBRARIES))/libraries.pth"
	$(BIN4)/python -m pip install -c constraints.txt -e ".[tests]" "transformers>=4.57,<5" "optimum-onnx[onnxruntime]==0.1.*"
	@touch $@
