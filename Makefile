# What a fresh machine needs is make and Python 3.11 or newer; `make` lists the targets.
#
#   PYTHON       the interpreter to make .venv with; default: the first fitting one
#   VENV         where to; default: .venv
#   TORCH_INDEX  where to look for PyTorch besides PyPI; default: PyTorch's CPU builds, as
#                those of PyPI bring gigabytes of CUDA to Linux. For a GPU: TORCH_INDEX=
#   DEMO_CONFIG, QUICK_CONFIG  run configs of `make demo` and `make quick`
#   WRITING_CONFIG  the same of `make demo-generation`
#   COMPARE      options of `make compare`
#   TEST_JOBS    processes of `make test`

VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO_CONFIG ?= codec='int8' devices='192MiB,227MiB,292MiB' test-examples=32 fingerprint-batches=4
QUICK_CONFIG ?= model='minilm' codec='int4' local-steps=14 batch-size=16 train-examples=256 test-examples=32
WRITING_TASKS ?= french,german,dialog
WRITING_CONFIG ?= num-rounds=3 local-steps=12 train-examples=288 test-examples=32 \
	learning-rate=0.002 max-length=64 score-tokens=32 fingerprint-batches=4 evaluate-every=3
TEST_JOBS ?= 2
COMPARE ?= --strategies atlas,fedavg,local --seeds 0 -c "$(DEMO_CONFIG)"

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
CANDIDATES := python3.11 python3.12 python3.13 python3.14 python3
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	$$p -c '$(FITS)' 2>/dev/null && command -v $$p && break; done)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv install install-dev demo demo-generation quick test test-slow test-gpu lint format compare clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1|/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

venv: $(VENV)/.made ## Make the virtual environment

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 to 3.14 is needed and none was found" \
		"(tried $(CANDIDATES)). Install one, or name it: make PYTHON=/path/to/python" >&2; \
		exit 1; fi
	@$(PYTHON) -c '$(FITS)' || { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1);" \
		"Python 3.11 to 3.14 is needed" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual" \
		"environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

install: $(VENV)/.installed ## Install the library there, with tested versions of all else

$(VENV)/.torch: $(VENV)/.made constraints.txt
	$(PIP) install --quiet --constraint constraints.txt pip
	$(PIP) install --no-deps --retries 1 --constraint constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

install-dev: $(VENV)/.installed-dev ## Install what tests and checks need, too

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --group dev
	@touch $@

demo: $(VENV)/.installed ## Fine-tune SmolLM2-135M with eight clients, each with a few blocks of it
	$(BIN)/atlas-flwr fetch
	$(BIN)/atlas-flwr run --num-supernodes 8 --run-config "$(DEMO_CONFIG)"

demo-generation: $(VENV)/.installed ## Teach SmolLM2-135M to write: three clusters that ask for unlike answers
	$(BIN)/atlas-flwr fetch --tasks $(WRITING_TASKS)
	$(BIN)/atlas-flwr run --num-supernodes 6 \
		--run-config "tasks='$(WRITING_TASKS)' $(WRITING_CONFIG)"
	for client in 0 1 2; do $(BIN)/atlas-flwr generate --client $$client \
		--held-out 3 --beside-base --max-new-tokens 32 || exit 1; done

quick: $(VENV)/.installed ## The same with MiniLM, in some three minutes
	$(BIN)/atlas-flwr fetch --model minilm
	$(BIN)/atlas-flwr run --num-supernodes 8 --run-config "$(QUICK_CONFIG)"

compare: $(VENV)/.installed ## Compare ATLAS with FedAvg and no federation; takes a while
	$(BIN)/atlas-flwr fetch
	$(BIN)/atlas-flwr compare $(COMPARE)

test: $(VENV)/.installed-dev ## Run the tests
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadscope

test-slow: $(VENV)/.installed-dev ## Run all tests, those that take minutes too
	$(BIN)/python -m pytest -m "not gpu"

test-gpu: $(VENV)/.installed-dev ## Run the tests that need a GPU (make install TORCH_INDEX= first)
	$(BIN)/python -m pytest -m gpu tests/gpu

CHECKS := check-format check-mypy check-pyright check-layers
.PHONY: $(CHECKS)

lint: $(CHECKS) ## Check format, types and layers

$(CHECKS): $(VENV)/.installed-dev

check-format:
	$(BIN)/ruff check
	$(BIN)/ruff format --check

check-mypy:
	$(BIN)/mypy

check-pyright:
	$(BIN)/pyright --pythonpath $(BIN)/python

check-layers:
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev ## Put code into the project's format
	$(BIN)/ruff check --fix --exit-zero
	$(BIN)/ruff format

clean: ## Remove the environment, caches and build outputs; runs/ and the download cache stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache *.egg-info *.fab
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
