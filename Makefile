# `make run` and `make test` do everything on a fresh machine with Python 3.11 and nothing else.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
RECIPE ?= pfsr
NODES  ?= 2
SEEDS  ?= 0 1 2
JOBS   ?= 2

export OMP_NUM_THREADS ?= 1
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION = 1
export RAY_USAGE_STATS_ENABLED = 0

KERNEL_SOURCES := $(shell find kernels -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.toml')

ARITHMETIC := arithmetic-scalar arithmetic-avx2 arithmetic-perturbed
# Where a number is computed. The rest of the suite reads files, texts and messages.
NUMERICAL := $(addprefix tests/pfsr_core/,algorithms assembly/test_catalogues.py evaluation \
	federated items models runs serving training) tests/experiments/leakage \
	$(addprefix tests/integration/,test_equality.py test_serve_round.py test_variants.py)

.PHONY: help setup run test test-slow test-arithmetic $(ARITHMETIC) test-deployment test-docker check format ablation bench docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/installed $(VENV)/kernels ## Make the environment in .venv

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[simulation,dev]"
	@touch $@

# Optional: without it plain PyTorch computes the same. CXX names the compiler.
$(VENV)/kernels: $(VENV)/installed $(KERNEL_SOURCES)
	@CXX="$(CXX)" $(BIN)/python kernels/install.py
	@touch $@

run: setup ## Train PFSR on ML-100K through Flower and say what it is worth
	$(BIN)/pfsr run $(RECIPE) --nodes $(NODES)

test: setup ## Run the default test suite
	$(BIN)/python -m pytest -q

test-slow: setup ## Run the slow tests too
	$(BIN)/python -m pytest -q -m "not deployment and not docker"

test-arithmetic: $(ARITHMETIC) ## Run the numerical tests as other processors would compute them

# Instruction sets of PyTorch (ATEN), MKL and oneDNN, and starts that differ in their last bits.
arithmetic-scalar: setup
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 PFSR_KERNELS=never \
		$(BIN)/python -m pytest -q -p no:cacheprovider $(NUMERICAL)

arithmetic-avx2: setup
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=AVX2 \
		OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE PFSR_TEST_THREADS=2 \
		$(BIN)/python -m pytest -q -p no:cacheprovider $(NUMERICAL)

arithmetic-perturbed: setup
	PFSR_TEST_PERTURBED=1e-7 $(BIN)/python -m pytest -q -p no:cacheprovider $(NUMERICAL)

test-deployment: setup ## Run the fault tests: a SuperLink and SuperNodes as real processes
	$(BIN)/python -m pytest -q -m deployment tests/deployment

test-docker: setup ## Lint the container files; build and run them where an engine is
	$(BIN)/python -m pytest -q -rs -m "docker or not docker" tests/docker

check: setup ## Format, lint, types, import contracts, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pfsr settings --check

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

ablation: setup ## The tables of docs/results/: hours on two cores, resumable
	$(BIN)/python -m experiments.run --seeds $(SEEDS) --jobs $(JOBS)
	$(BIN)/python -m experiments.tables
	$(BIN)/python -m experiments.leakage.plot

bench: setup ## Time ours against peers: docs/performance.md and its plots, ten to twelve minutes
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[simulation,dev,bench]"
	$(BIN)/python -m benchmarks --out docs

docs: setup ## Build the manual in site/: reference pages from the sources, links checked
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[simulation,dev,docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean: ## Remove caches (never runs, data or private state)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist site
