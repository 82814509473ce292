# Commands for people and for CI. VENV=folder takes another virtual environment than .venv.
#
# A virtual environment is (re)installed when constraints.txt, pyproject.toml or the checkout's place changes: its
# stamp is named after them and written last.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KEY := $(shell { cat constraints.txt pyproject.toml; pwd; } | cksum | tr ' ' '-')
DEMO_STAMP := $(VENV)/.installed-demo-$(KEY)
DEV_STAMP := $(VENV)/.installed-dev-$(KEY)
DEMO_RUN := runs/demo

.PHONY: demo test sanity lint types check configs format schema

demo: $(DEMO_STAMP)  ## train on speech made on this machine, then transcribe held-out files
	rm -rf $(DEMO_RUN)
	$(BIN)/python recipes/librispeech/train.py data=embedded run_dir=$(DEMO_RUN)
	$(BIN)/python -m asr.decode $(DEMO_RUN) 'data/embedded/raw/*/test-000[0-4]-*.flac'

test: $(DEV_STAMP)  ## the whole test suite
	$(BIN)/python -m pytest -n auto --dist worksteal

sanity: $(DEV_STAMP)  ## the sequence tasks that are quick and telling, 10 minutes; fails if a threshold is missed
	$(BIN)/python recipes/sequence/run_all.py --sanity

lint: $(DEV_STAMP)  ## form, likely bugs, layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports

types: $(DEV_STAMP)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

configs: $(DEV_STAMP)  ## every recipe with every preset; the JSON schema is current
	for recipe in recipes/*/config.yaml; do $(BIN)/asr check --every-preset "$${recipe%/*}" || exit 1; done
	$(BIN)/python recipes/sequence/run_all.py --check
	$(BIN)/python -m asr.config.json_schema --check

check: lint types configs  ## all that is quick

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

schema: $(DEV_STAMP)  ## write conf/schema.json anew
	$(BIN)/python -m asr.config.json_schema

# `venv` is run each time: it mends an environment whose making was interrupted.
$(DEMO_STAMP):
	rm -f $(VENV)/.installed-*
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(DEV_STAMP):
	rm -f $(VENV)/.installed-*
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(DEMO_STAMP)  # dev holds demo
