# Every target that needs the environment sets it up first; when that is done already, checking
# takes well under a second.
# Default: the first supported one that is found.
PYTHON ?=
# Of OpenMMLab's packages: maintained or original.
LINE ?= maintained
VENV ?= $(if $(filter original,$(LINE)),.venv-original,.venv)
# Package index for torch alone; tools/setup_env.sh says what holds by default.
TORCH_INDEX ?=
# Of `make app`, e.g. ARGS=--train or ARGS='--port 8000'; tools/app.py --help has them all.
ARGS ?=

PY := $(VENV)/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup setup-det demo app test test-core test-original reliability lint format docs wheel clean

help:
	@echo 'make demo        what you get without training, then a small training and its table'
	@echo 'make app         a web page: dense and sparse, side by side (ARGS=--train)'
	@echo 'make setup       set up $(VENV), for segmentation: minutes'
	@echo "make setup-det   and compile mmcv's operators, for detection: about 17 minutes on 2 cores, once per machine"
	@echo 'make test        run the tests: under 10 minutes on 2 cores'
	@echo 'make test-core   test the mechanism and the models alone: under 2 minutes'
	@echo 'make test-original  test with the original OpenMMLab line, in .venv-original'
	@echo 'make reliability inject faults, run the slow tests; writes docs/reliability.md'
	@echo 'make lint        ruff, mypy and codespell'
	@echo 'make format      let ruff fix and format the code'
	@echo 'make docs        build the documentation in docs/_build/html'
	@echo 'make wheel       build a wheel of mmdyn in dist/'
	@echo 'make clean       remove build and cache folders (not $(VENV), data/ or work_dirs/)'
	@echo
	@echo 'Every target sets up what it needs first; all tests and the documentation need setup-det.'
	@echo 'Variables: PYTHON=python3.11 (3.10, 3.11 or 3.12), VENV=$(VENV), LINE=$(LINE),'
	@echo '  TORCH_INDEX=index for torch (without an NVIDIA GPU its small CPU build is taken where it can be'
	@echo "  reached; default: pip's own), PIP_FIND_LINKS=folder with a prebuilt wheel of mmcv, if you have one."

SETUP = LINE='$(LINE)' PYTHON='$(PYTHON)' VENV='$(VENV)' TORCH_INDEX='$(TORCH_INDEX)' bash tools/setup_env.sh

setup:
	@$(SETUP)

setup-det:
	@$(SETUP) det

demo: setup
	@"$(PY)" tools/demo.py

app: setup
	@"$(PY)" tools/app.py $(ARGS)

# Each process takes a run of neighbouring tests, which share what their file sets up.
PYTEST := "$(PY)" -m pytest -q -n logical --maxprocesses 8 --dist worksteal
CORE := tests/test_sparsity tests/test_convolutions tests/test_models

test: setup-det
	@$(PYTEST)

# Backbones, heads, adapters for the hosts, and the mechanism in them.
test-core: setup-det
	@$(PYTEST) $(CORE)

# What needs ONNX or torch's export is left out: this line's torch is too old for it.
test-original:
	@$(MAKE) --no-print-directory test LINE=original VENV='$(if $(filter file,$(origin VENV)),.venv-original,$(VENV))'

# By files: some count over their tests. Then the slow tests of the other folders.
reliability: setup-det
	@MMDYN_RELIABILITY=docs/reliability.md MMDYN_NIGHTLY=1 $(PYTEST) tests/test_reliability --dist loadfile
	@$(PYTEST) -m slow --ignore tests/test_reliability

lint: setup
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m mypy mmdyn/sparsity mmdyn/convolutions
	"$(PY)" -m codespell_lib

format: setup
	"$(PY)" -m ruff check --fix .
	"$(PY)" -m ruff format .

docs: setup-det
	"$(PY)" -m sphinx -W --keep-going -n -q docs docs/_build/html

wheel: setup
	"$(PY)" -m pip wheel . --no-deps --no-build-isolation -w dist

clean:
	rm -rf build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
