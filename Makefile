# Every target that needs the environment sets it up first; when that is done already, checking
# takes well under a second.
PYTHON ?= python3.11
# Of OpenMMLab's packages: maintained or original.
LINE ?= maintained
VENV ?= $(if $(filter original,$(LINE)),.venv-original,.venv)
# Another package index for torch alone, e.g. https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Of `make app`, e.g. ARGS=--train or ARGS='--port 8000'; tools/app.py --help has them all.
ARGS ?=

PY := $(VENV)/bin/python
# A PYTHON that the user gave is taken or refused; the default may be replaced by another
# supported one where there is no python3.11.
ifneq ($(origin PYTHON),file)
SETUP_PYTHON := $(PYTHON)
endif

.DEFAULT_GOAL := help
.PHONY: help setup setup-mmcv demo app test test-core test-original reliability lint format docs wheel clean

help:
	@echo 'make demo        set up, then train, evaluate and compare on generated data'
	@echo 'make app         set up, then serve a web page: dense and sparse, side by side (ARGS=--train)'
	@echo 'make test        set up, then run the tests: under 10 minutes on 2 cores'
	@echo 'make test-core   set up, then test the mechanism and the models alone: under 2 minutes'
	@echo 'make test-original  the same with the original OpenMMLab line, in .venv-original'
	@echo 'make reliability set up, then break things on purpose, and run the slow tests; writes docs/reliability.md'
	@echo 'make setup       set up the environment in $(VENV) only'
	@echo 'make setup-mmcv  install mmcv again (after a new compiler or CUDA toolkit)'
	@echo 'make lint        set up, then ruff, mypy and codespell'
	@echo 'make format      set up, then let ruff fix and format the code'
	@echo 'make docs        set up, then build the documentation in docs/_build/html'
	@echo 'make wheel       build a wheel of mmdyn in dist/'
	@echo 'make clean       remove build and cache folders (not $(VENV), data/ or work_dirs/)'
	@echo
	@echo 'Variables: PYTHON=$(PYTHON) (3.10, 3.11 or 3.12), VENV=$(VENV), LINE=$(LINE),'
	@echo '  TORCH_INDEX=https://download.pytorch.org/whl/cpu for a small torch without CUDA,'
	@echo '  PIP_FIND_LINKS=folder with a prebuilt wheel of mmcv, if you have one.'
	@echo 'The first set-up compiles mmcv: about 17 minutes on 2 cores, once per machine.'

setup:
	@LINE='$(LINE)' PYTHON='$(SETUP_PYTHON)' VENV='$(VENV)' TORCH_INDEX='$(TORCH_INDEX)' bash tools/setup_env.sh

setup-mmcv:
	@rm -f '$(VENV)/.mmdyn/mmcv'
	@$(MAKE) --no-print-directory setup

demo: setup
	@$(PY) tools/demo.py

app: setup
	@$(PY) tools/app.py $(ARGS)

# Each process takes a run of neighbouring tests, which share what their file sets up.
PYTEST := $(PY) -m pytest -q -n logical --maxprocesses 8 --dist worksteal
CORE := tests/test_sparsity tests/test_convolutions tests/test_models

test: setup
	@$(PYTEST)

# Backbones, heads, adapters for the hosts, and the mechanism in them.
test-core: setup
	@$(PYTEST) $(CORE)

# What needs ONNX or torch's export is left out: this line's torch is too old for it.
test-original:
	@$(MAKE) --no-print-directory test LINE=original VENV='$(if $(filter file,$(origin VENV)),.venv-original,$(VENV))'

# By files: some count over their tests. Then the slow tests of the other folders.
reliability: setup
	@MMDYN_RELIABILITY=docs/reliability.md MMDYN_NIGHTLY=1 $(PYTEST) tests/test_reliability --dist loadfile
	@$(PYTEST) -m slow --ignore tests/test_reliability

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy mmdyn/sparsity mmdyn/convolutions
	$(PY) -m codespell_lib

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: setup
	$(PY) -m sphinx -W --keep-going -n -q docs docs/_build/html

wheel: setup
	$(PY) -m pip wheel . --no-deps --no-build-isolation -w dist

clean:
	rm -rf build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
