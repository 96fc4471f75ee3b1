# make demo        set up if needed, then regenerate the ablation table at scale mini
# make test        set up if needed, then the tests (about 12 minutes on 2 cores)
# make test-all    the slow tests too (all tables at smoke), and those on a real Slurm (skipped
#                  without): about 40 minutes
# make drills      the launcher's long drills: time limits, a sweep of 200 runs (20 minutes)
# make docs        the documentation, into site/ (`mkdocs serve` shows it while one writes)
# make setup       only the environment: .venv from requirements.lock
# make crf         add the CRF that CRATE-alpha's MaskCut protocol uses (needs a C++ compiler)
#
# Inside an environment of your own (environment.yml makes one):  make demo VENV="$CONDA_PREFIX"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CORES ?= all
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: crf demo test test-all docs drills lint lock setup clean

ifeq ($(VENV),.venv)
READY := $(VENV)/.ready
else
READY := own-environment
.PHONY: own-environment
own-environment:
	@$(BIN)/python -c "import torch, snakemake, pydantic, pytest, xdist" || { echo "$(VENV) lacks the suite's packages: conda env create -f environment.yml makes an environment that has them" >&2; exit 2; }
endif

setup: $(READY)

# uv is pip-installed into the environment it fills; an interrupted set-up starts again from here
.venv/.ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "setting up $(VENV) (once; about 3 GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

UV_VERSION := 0.13.8

crf: $(READY)
	@$(BIN)/python -c "import pydensecrf" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check pydensecrf2==1.1

demo: $(READY)
	@snakemake --cores $(CORES) table_ablation figure_ablation --quiet host reason
	@python -m crate show ablation

test: $(READY) lint
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not cluster"

test-all: $(READY) lint
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict --site-dir site

drills: $(READY)
	@python tests/cluster/drills.py

lint: $(READY)
	@ruff check --quiet .
	@ruff format --check --quiet .
	@snakefmt --check Snakefile workflow
	@python -m crate.planning.identity
	@report=$$(lint-imports) || { echo "$$report" >&2; exit 1; }

# after a change of pyproject.toml; environment.yml names the same versions
lock: $(READY)
	@$(BIN)/uv pip compile pyproject.toml --extra export --extra test --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet \
	    -o requirements.lock

clean:
	@rm -rf .venv .snakemake .pytest_cache .ruff_cache *.egg-info build dist site
