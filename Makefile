# Only make and Python 3.11 (with its venv module) are needed; everything else lands in .venv.
# `make` alone says what there is.

PYTHON ?= python3
VENV   ?= .venv
PORT   ?=
STATE  ?=

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
BASE    := $(VENV)/stamp.venv
RUNTIME := $(VENV)/stamp.cpu
DEV     := $(VENV)/stamp.dev
FAST    := $(VENV)/stamp.fast
RUN     := $(if $(wildcard $(FAST)),$(FAST),$(RUNTIME))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install fast up test check bench soak clean

help:
	@echo "make install   make $(VENV) with Hostler and the CPU engines, versions and hashes locked"
	@echo "make fast      the same with the data plane compiled; needs a C compiler, takes a minute or two"
	@echo "make up        start the server and the default models   PORT=8100 STATE=folder"
	@echo "make test      every test, the quick ones first          ARGS='-k name'"
	@echo "make check     format, lint, types, house rules"
	@echo "make bench     measure what the README claims            ARGS=..."
	@echo "make soak      storms, times to truth, state machines    ARGS=..."
	@echo "make clean     remove $(VENV) and caches; never a state folder"

# The package from this folder, as it is. Tests run the sources, so they come back here after `make fast`.
install: $(RUNTIME)
ifneq ($(wildcard $(FAST)),)
	@rm -f $(FAST)
	$(install_editable)
endif

fast: $(FAST)

up: $(RUN)
	@$(BIN)/hostler up $(if $(PORT),--port $(PORT)) $(if $(STATE),--state-dir $(STATE)) $(ARGS)

test: install $(DEV)
	@VENV=$(VENV) scripts/test $(ARGS)

check: $(DEV)
	@VENV=$(VENV) scripts/check

bench: $(RUN)
	@$(BIN)/python -m bench $(ARGS)

soak: $(RUN) $(DEV)
	@$(BIN)/python -m bench.soak $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# A stamp is newer than what it was made from, so a second `make up` installs nothing.

$(BASE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than 3.11; say which to use: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "make: no venv module; on Debian: apt install python3-venv" >&2; exit 1; }
	@touch $@

# The build backend is hash-locked too and used from a folder of its own, so it does not stay installed.
define install_editable
@echo "installing hostler from this folder"
@rm -rf $(VENV)/build
@$(PIP) install -qq --no-compile --require-hashes --target $(VENV)/build -r requirements/build.txt
@PYTHONPATH=$(VENV)/build $(PIP) install -qq --no-index --no-deps --no-build-isolation -e .
@rm -rf $(VENV)/build
endef

$(RUNTIME): $(BASE) requirements/cpu.txt requirements/build.txt pyproject.toml
	@echo "installing $$(grep -c '==' requirements/cpu.txt) locked packages (hashes checked)"
	@$(PIP) install -qq --no-compile --require-hashes -r requirements/cpu.txt
	$(install_editable)
	@touch $@
	@echo "ready: $(BIN)/hostler"

# A wheel with the modules of scripts/compiled.py as C. Made again by `make up` when a source is newer.
$(FAST): $(RUNTIME) requirements/compile.txt hatch_build.py $(shell find src scripts/compiled.py -name '*.py' -o -name '*.c')
	@command -v $${CC:-cc} >/dev/null || \
	  { echo "make: no C compiler; on Debian: apt install gcc. Without one, make up runs the sources" >&2; exit 1; }
	@$(BIN)/python -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || \
	  { echo "make: Python.h is missing; on Debian: apt install python3-dev" >&2; exit 1; }
	@echo "compiling the data plane (a minute or two)"
	@rm -rf $(VENV)/build
	@$(PIP) install -qq --no-compile --require-hashes --target $(VENV)/build -r requirements/build.txt -r requirements/compile.txt
	@HOSTLER_COMPILE=1 PYTHONPATH=$(abspath $(VENV)/build) \
	  $(PIP) install -qq --no-index --no-deps --no-build-isolation --force-reinstall .
	@rm -rf $(VENV)/build
	@touch $@
	@echo "ready: $(BIN)/hostler, compiled"

$(DEV): $(RUNTIME) requirements/dev.txt
	@echo "installing the tools for tests and checks"
	@$(PIP) install -qq --no-compile --require-hashes -r requirements/dev.txt
	@touch $@
